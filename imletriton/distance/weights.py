"""The weights of pretrained networks: where they are downloaded from, and where they are stored."""

import hashlib
from pathlib import Path

import torch

from imletriton.errors import InputError

INCEPTION = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


def sources() -> dict[str, str]:
    """Return the URLs of the weights by network: the backbones of LPIPS, and clean-fid's Inception for FID and KID."""
    from torchvision import models

    return {
        "vgg": models.VGG16_Weights.IMAGENET1K_V1.url,
        "alex": models.AlexNet_Weights.IMAGENET1K_V1.url,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
        "inception": INCEPTION,
    }


def weights_file(network: str) -> Path:
    """Return the path of a network's weights in torch.hub's folder; the file need not exist."""
    return Path(torch.hub.get_dir()) / "checkpoints" / sources()[network].rsplit("/", 1)[1]


def damaged(network: str) -> bool:
    """Return whether a network's weights file is empty, or its checksum is not that in its name.

    Raises OSError if it cannot be read.
    """
    file = weights_file(network)
    with file.open("rb") as opened:
        checksum = hashlib.file_digest(opened, "sha256").hexdigest()
        return opened.tell() == 0 or not checksum.startswith(_checksum(file) or "")


def _checksum(file: Path) -> str | None:
    """Return the beginning of the SHA-256 that torchvision puts in file names; None for other files."""
    return file.stem.rsplit("-", 1)[1] if file.suffix == ".pth" else None


def fetch_weights(network: str) -> Path:
    """Return the file of a network's weights (a key of `sources`), which is downloaded on first use.

    Raises:
        InputError: It cannot be downloaded. The message has the URL, and the path to put the file at.
    """
    url, path = sources()[network], weights_file(network)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), _checksum(path))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"The {network} weights cannot be downloaded ({error}): fetch {url} on a machine that can, "
                f"put it at {path}, or ask for random weights: `pretrained=False` to evaluate, "
                "`distance.weights=random` to train."
            ) from error
    return path
