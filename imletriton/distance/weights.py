"""Networks trained elsewhere: where their weights come from and where they lie."""

import hashlib
from pathlib import Path

import torch

from imletriton.errors import InputError

INCEPTION = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"


def sources() -> dict[str, str]:
    """URLs of the weights by network: the backbones of LPIPS, and Inception for FID and KID (as clean-fid uses it)."""
    from torchvision import models

    return {
        "vgg": models.VGG16_Weights.IMAGENET1K_V1.url,
        "alex": models.AlexNet_Weights.IMAGENET1K_V1.url,
        "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
        "inception": INCEPTION,
    }


def weights_file(network: str) -> Path:
    """Where a network's weights lie, or belong: in torch.hub's folder."""
    return Path(torch.hub.get_dir()) / "checkpoints" / sources()[network].rsplit("/", 1)[1]


def damaged(network: str) -> bool:
    """Whether a network's weights file is not what it should be, as far as its name tells."""
    file = weights_file(network)
    with file.open("rb") as opened:
        return (
            not hashlib.file_digest(opened, "sha256").hexdigest().startswith(_checksum(file) or "")
            or opened.tell() == 0
        )


def _checksum(file: Path) -> str | None:
    """The beginning of a file's sha256, which torchvision's names hold."""
    return file.stem.rsplit("-", 1)[1] if file.suffix == ".pth" else None


def fetch_weights(network: str) -> Path:
    """A network's weights, downloaded on first use.

    Raises InputError, naming file, source and place, where they cannot be had.
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
