"""What a run trained on: device and versions."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("imletriton", "torch", "triton")


def environment(device: torch.device) -> dict[str, str]:
    """The device and the versions that the figures of a run may depend on."""
    found = {"device": device_name(device), "system": platform.platform(), "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # Triton is on Linux only
            continue
    return found


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name, as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
