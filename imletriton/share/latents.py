"""Files of latent codes, which `imletriton project` writes and other commands read; safetensors, so without pickle."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from imletriton.errors import InputError, notice
from imletriton.runs.opening import Source
from imletriton.runs.reading import regular
from imletriton.runs.run import write_whole
from imletriton.sections import MAX_SAMPLES

if TYPE_CHECKING:  # a wrong file is reported before PyTorch is imported
    from torch import Tensor

NAME = "latents"  # of the tensor in a file
SUFFIX = ".safetensors"
MEND = f"give a {SUFFIX} file that `imletriton project` wrote"


def model_hash(checkpoint: Path) -> str:
    """The SHA-256 sum of a model's weights, which its latent codes and samples are marked with."""
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def save_latents(file: Path, latents: "Tensor", metadata: dict[str, str]) -> None:
    """Write latent codes, float32 [n, latent_dim], and metadata, as a whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors.torch import save

    content = save({NAME: latents.contiguous()}, metadata)  # `save_file` would make the file unreadable for others
    write_whole(file, lambda unfinished: unfinished.write_bytes(content))


def check_latents(file: Path) -> int:
    """Check a file of latent codes without PyTorch, and return their number.

    Raises:
        InputError: The file is missing or damaged, or holds no latent codes.
    """
    try:
        regular(file).open("rb").close()  # its errors have reasons, which those of safetensors lack
        with safe_open(file, "numpy") as opened:
            if NAME not in opened.keys():  # noqa: SIM118  (it is not a mapping)
                raise InputError(f"{file} holds no latent codes: {MEND}.")
            kept = opened.get_slice(NAME)
            shape, kind = kept.get_shape(), kept.get_dtype()
    except SafetensorError as error:
        raise InputError(f"{file} is not a {SUFFIX} file, or is damaged ({error}): {MEND}.") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}): {MEND}.") from error
    if kind not in ("F32", "F16") or len(shape) != 2 or not 1 <= shape[0] <= MAX_SAMPLES:
        raise InputError(f"{file} holds no latent codes, but {kind} numbers of shape {tuple(shape)}: {MEND}.")
    return int(shape[0])


def load_latents(file: Path, source: Source, latent_dim: int) -> "Tensor":
    """Read the latent codes in a file, with a notice if they belong to other weights than the model's.

    Args:
        file: The file.
        source: The model.
        latent_dim: The dimension of its latent codes.

    Returns:
        float32 [n, latent_dim], on the CPU.

    Raises:
        InputError: See `check_latents`; or the codes have another dimension, or are NaN or infinite.
    """
    import torch

    check_latents(file)
    with safe_open(file, "pt") as opened:
        latents: Tensor = opened.get_tensor(NAME).to(torch.float32)
        model = (opened.metadata() or {}).get("model")
    if latents.shape[1] != latent_dim:
        raise InputError(
            f"{file} holds latent codes of {latents.shape[1]} dimensions, and {source.name} takes {latent_dim}: "
            "name the model that they belong to."
        )
    if not latents.isfinite().all():
        raise InputError(f"{file} holds latent codes that are NaN or infinite: {MEND}.")
    if model is not None and model != model_hash(source.checkpoint):
        notice(f"The latent codes in {file} were found for other weights than those of {source.title}.")
    return latents
