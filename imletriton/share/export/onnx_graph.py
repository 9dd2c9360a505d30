"""A generator as an ONNX graph, which is compared with PyTorch before it is written."""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from imletriton.data import catalogue
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator, latent_codes
from imletriton.recipe import recipe_of
from imletriton.runs.opening import Source
from imletriton.runs.run import write_whole
from imletriton.share.model import Loaded
from imletriton.training.reporter import Progress

OPSET = 20  # the first with Gelu
MEAN_OF = 10_000  # samples, towards whose mean truncation pulls styles
LARGEST = 2**31 - 2**24  # bytes of weights: a file of Protocol Buffers holds less than 2 GiB
BATCHES = ((1, 1.0), (7, 1.0), (4, 0.5))  # the sizes and the truncations of the batches that are compared
COMPARED = sum(size for size, _ in BATCHES)  # samples
MOST = 1  # grey level by which samples of an exported model may differ from PyTorch's


class Truncated(nn.Module):
    """A generator as it is exported: latent codes and a truncation to images and styles.

    w = m + truncation * (style(z) - m), where m is the mean style of samples 0 to 9,999 of seed 0: the truncation
    trick in W (Karras et al., CVPR 2019, appendix B).

    Args:
        model: The generator, on the CPU.
    """

    mean: Tensor

    def __init__(self, model: Generator) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            styles = [model.style(z) for z in latent_codes(0, MEAN_OF, model.latent_dim, seed=0).split(1000)]
        self.register_buffer("mean", torch.cat(styles).mean(0))

    def forward(self, z: Tensor, truncation: Tensor) -> tuple[Tensor, Tensor]:
        """Draw samples.

        Args:
            z: Latent codes, float32 [b, latent_dim].
            truncation: float32 []; 1 leaves the styles as they are.

        Returns:
            Images, uint8 [b, 3, H, W], rounded as `Generator.sample` does, and their styles w, float32 [b, style_dim].
        """
        styles = self.mean + truncation * (self.model.style(z) - self.mean)
        return self.model.decoder.at_rest(self.model.decode(styles)), styles


class Graph(NamedTuple):
    """A generator as an ONNX graph, with the inputs z and truncation and the outputs images and styles."""

    proto: onnx.ModelProto
    truncated: Truncated  # what it was converted from
    facts: dict[str, str]  # its metadata

    @property
    def weights(self) -> int:
        """How many weights the generator has."""
        return sum(weight.numel() for weight in self.truncated.model.parameters())

    def make_truncation_optional(self) -> None:
        """Let truncation be 1 unless it is given; onnxruntime-web does not know such inputs."""
        self.proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "truncation"))

    def write(self, path: Path, progress: Progress) -> int:
        """Write an ONNX file, but only if its samples are those of PyTorch; returns the greatest difference.

        Raises:
            Fault: The samples differ, or onnxruntime cannot run the file.
            OSError: The file cannot be written.
        """
        difference = 0

        def write(file: Path) -> None:
            nonlocal difference
            file.write_bytes(self.proto.SerializeToString())
            progress("comparing", 0, COMPARED)
            difference = compare(file, self.truncated, lambda done: progress("comparing", done, COMPARED))
            if difference > MOST:
                raise Fault(
                    f"{path} was not written, because onnxruntime and PyTorch draw different samples: they differ by "
                    f"up to {difference} grey levels."
                )

        write_whole(path, write)
        return difference


def convert(source: Source, progress: Progress) -> Graph:
    """Convert the generator of a model to ONNX.

    Args:
        source: The model.
        progress: Called with "converting", 0 and then 1, and 1.

    Raises:
        InputError: It generates points, or has too many weights for one file.
        Fault: PyTorch cannot convert it.
    """
    progress("converting", 0, 1)
    loaded = Loaded(source, "cpu")
    model, recipe = loaded.picture_model, recipe_of(loaded.source)
    if 4 * model.cost.weights > LARGEST:
        raise InputError(f"{source.name} has {model.cost.weights:,} weights, more than an ONNX file can hold (2 GiB).")
    truncated = Truncated(model).eval()
    converted = _converted(truncated, source.name)
    for part in (*converted.graph.node, *converted.graph.value_info, *converted.graph.input, *converted.graph.output):
        part.ClearField("metadata_props")  # which names files on this machine
    converted.producer_name, converted.producer_version = "imletriton", version("imletriton")
    converted.doc_string = (
        f"z, float32 [batch, {model.latent_dim}], standard normal: latent codes. truncation, float32 []: 1 leaves the "
        "styles as they are, 0 gives the mean picture. images, uint8 [batch, 3, H, W], RGB. styles, float32 [batch, "
        "dimension]: what the mapping network makes of z, after truncation."
    )
    known = catalogue.named_by(recipe.data.source) if recipe else None
    facts = {
        "name": source.name,
        "step": str(loaded.source.step or ""),
        "resolution": str(model.shape[-1]),
        "latent_dim": str(model.latent_dim),
        "licence": f"of the training pictures: {known.licence}" if known else "",
        "imletriton": version("imletriton"),
    }
    onnx.helper.set_model_props(converted, facts := {name: value for name, value in facts.items() if value})
    progress("converting", 1, 1)
    return Graph(converted, truncated, facts)


def _converted(truncated: Truncated, name: str) -> onnx.ModelProto:
    example = latent_codes(0, 2, truncated.model.latent_dim, seed=0), torch.tensor(1.0)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(
                truncated,
                example,
                input_names=["z", "truncation"],
                output_names=["images", "styles"],
                dynamic_shapes=({0: "batch"}, None),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = next(filter(None, str(cause).splitlines()), type(cause).__name__)
        raise Fault(f"PyTorch cannot convert the generator of {name} to ONNX ({reason.rstrip('.')}).") from error
    assert program is not None  # as dynamo is on
    return program.model_proto


def compare(file: Path, truncated: Truncated, progress: Callable[[int], None] = lambda done: None) -> int:
    """Let onnxruntime draw samples, with and without truncation, and compare them with those of PyTorch.

    Returns:
        The greatest difference, in grey levels from 0 to 255.

    Raises:
        Fault: onnxruntime cannot run the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns that truncation is optional
    model, done, difference = truncated.model, 0, 0
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        optional = [value.name for value in session.get_overridable_initializers()]
        for size, truncation in BATCHES:
            z, strength = latent_codes(done, done + size, model.latent_dim, seed=0), torch.tensor(truncation)
            feeds = {"z": z.numpy(), "truncation": strength.numpy()}
            if truncation == 1 and optional:
                del feeds["truncation"]
            (drawn,) = session.run(["images"], feeds)
            with torch.no_grad():
                plain = model.decoder.at_rest(model(z)) if truncation == 1 else truncated(z, strength)[0]
            difference = max(difference, int((torch.from_numpy(drawn).int() - plain.int()).abs().max()))
            progress(done := done + size)
    except Exception as error:  # onnxruntime has no common class of them
        raise Fault(f"onnxruntime cannot run what was exported ({str(error).splitlines()[0].rstrip('.')}).") from error
    return difference
