"""Features of many images: made as the images come, or read from where they were kept."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from imletriton.errors import Fault
from imletriton.metrics.networks import Network
from imletriton.runs.run import write_whole

BATCH = 16
FORMAT = 1  # of what is kept: to be raised where networks or their preparation change
T = TypeVar("T")


def features(
    images: Iterable[Tensor],
    networks: list[tuple[Network, int]],
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Tensor]:
    """Features of the first `count` images for each (network, count): float32 [count, d] on the CPU.

    images: batches, uint8 [b, 3, H, W]. The next batch is made and prepared while the networks see the one before; no
    more than two are held. Raises Fault where features are not finite.
    """
    found: list[list[Tensor]] = [[] for _ in networks]
    done = 0

    def prepared(batch: Tensor, start: int) -> tuple[int, list[Tensor]]:
        batch = batch.cpu()
        return len(batch), [network.prepare(batch[: max(0, count - start)]) for network, count in networks]

    def made() -> Iterator[tuple[int, list[Tensor]]]:
        start, enough = 0, max(count for _, count in networks)
        for batch in images:
            yield prepared(batch[: enough - start], start)
            start += len(batch)
            if start >= enough:
                return

    for size, inputs in _ahead(made()):
        for (network, _), x, kept in zip(networks, inputs, found, strict=True):
            if len(x):
                with torch.no_grad():
                    kept.append(network(x.to(device)).cpu())
                if not kept[-1].isfinite().all():
                    raise Fault(f"{network.name} finds no finite features for images {done} to {done + size - 1}.")
        progress(done := done + size)
    return [torch.cat(kept) for kept in found]


def kept_features(images: Tensor, network: Network, pretrained: bool, device: torch.device) -> Tensor:
    """Features of images, uint8 [n, 3, H, W], as above; kept by content in the user's cache, as safetensors."""
    import pooch

    content = hashlib.sha256(images.numpy().tobytes() + str(tuple(images.shape)).encode()).hexdigest()[:24]
    weights = "pretrained" if pretrained else "random"
    name = f"{network.name}-{weights}-{FORMAT}-{content}.safetensors"
    file = Path(pooch.os_cache("imletriton")) / "features" / name
    try:
        return load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):
        (found,) = features(images.split(BATCH), [(network, len(images))], device)
    with contextlib.suppress(OSError, SafetensorError):  # a full disk or a home without rights costs time only
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, lambda unfinished: save_file({"features": found}, unfinished))
    return found


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items in order, the next one made by another thread while one is used."""
    with ThreadPoolExecutor(1) as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item
