"""From a generator to an ONNX graph, which is compared with PyTorch."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from imletriton.errors import Fault, InputError
from imletriton.generator import Generator, latent_codes

OPSET = 20  # the first with Gelu
MEAN_OF = 10_000  # samples whose mean style truncation pulls towards
LARGEST = 2**31 - 2**24  # bytes of weights: a file of Protocol Buffers holds less than 2 GiB
BATCHES = ((1, 1.0), (7, 1.0), (4, 0.5))  # in which both draw samples: their sizes, and the truncation
COMPARED = sum(size for size, _ in BATCHES)  # samples


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


def to_onnx(model: Generator, facts: dict[str, str]) -> tuple[onnx.ModelProto, Truncated]:
    """Convert a generator of images.

    Args:
        model: The generator, on the CPU and in eval mode.
        facts: What the file tells of itself, as its metadata.

    Returns:
        The ONNX model, with the inputs z and truncation and the outputs images and styles; and what it was made from.

    Raises:
        InputError: There are too many weights for one file.
        Fault: PyTorch cannot convert this generator.
    """
    if 4 * model.cost.weights > LARGEST:
        raise InputError(
            f"{facts['name']} has {model.cost.weights:,} weights, more than an ONNX file can hold (2 GiB)."
        )
    truncated = Truncated(model).eval()
    example = latent_codes(0, 2, model.latent_dim, seed=0), torch.tensor(1.0)
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
        raise Fault(
            f"PyTorch cannot convert the generator of {facts['name']} to ONNX ({reason.rstrip('.')})."
        ) from error
    assert program is not None  # as dynamo is on
    converted = program.model_proto
    for part in (*converted.graph.node, *converted.graph.value_info, *converted.graph.input, *converted.graph.output):
        part.ClearField("metadata_props")  # which tells of files on this machine
    converted.producer_name, converted.producer_version = "imletriton", facts["imletriton"]
    converted.doc_string = (
        f"z, float32 [batch, {model.latent_dim}], standard normal: latent codes. truncation, float32 []: 1 leaves the "
        "styles as they are, 0 gives the mean picture. images, uint8 [batch, 3, H, W], RGB. styles, float32 [batch, "
        "dimension]: what the mapping network makes of z, after truncation."
    )
    onnx.helper.set_model_props(converted, facts)
    return converted, truncated


def make_optional(converted: onnx.ModelProto) -> None:
    """Let truncation be 1 where it is not given, so that z is the only input that a program has to know."""
    converted.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "truncation"))


def compare(file: Path, truncated: Truncated, progress: Callable[[int], None] = lambda done: None) -> int:
    """Let onnxruntime draw samples, with and without truncation, and compare them with those of PyTorch.

    Returns:
        The greatest difference, in grey levels from 0 to 255.

    Raises:
        Fault: onnxruntime cannot run the file.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns that truncation may be given
    model, done, difference = truncated.model, 0, 0
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        optional = [value.name for value in session.get_overridable_initializers()]
        for size, truncation in BATCHES:
            z = latent_codes(done, done + size, model.latent_dim, seed=0)
            feeds = {"z": z.numpy(), "truncation": np.array(truncation, np.float32)}
            if truncation == 1 and optional:
                del feeds["truncation"]
            (drawn,) = session.run(["images"], feeds)
            with torch.no_grad():
                plain = (
                    model.decoder.at_rest(model(z)) if truncation == 1 else truncated(z, torch.tensor(truncation))[0]
                )
            difference = max(difference, int((torch.from_numpy(drawn).int() - plain.int()).abs().max()))
            progress(done := done + size)
    except Exception as error:  # onnxruntime has no common class of them
        raise Fault(f"onnxruntime cannot run what was exported ({str(error).splitlines()[0].rstrip('.')}).") from error
    return difference
