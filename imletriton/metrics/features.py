"""Compute the features of many images in batches, or load them from a cache on disk."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from imletriton.data import cache
from imletriton.errors import Fault
from imletriton.metrics.networks import Network

BATCH = 16
FORMAT = 1  # version of the cached features, of networks and their preprocessing
T = TypeVar("T")


def features(
    images: Iterable[Tensor],
    networks: list[tuple[Network, int]],
    device: torch.device,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Tensor]:
    """Compute features of images with several networks at once.

    The next batch is drawn and preprocessed in another thread while the networks process the current one.

    Args:
        images: Batches of images, each uint8 [b, 3, H, W].
        networks: Pairs (network, count): the network sees only the first `count` images.
        device: The device that the networks are on.
        progress: Called with the number of images done so far.

    Returns:
        The features by each network, float32 [count, d], on the CPU.

    Raises:
        Fault: Some features are not finite.
    """
    features_of = [torch.empty(0) for _ in networks]
    progress(done := 0)

    def prepared_batches() -> Iterator[tuple[int, list[Tensor]]]:
        """Yield the size of each batch, and the batch as prepared for each network."""
        start, enough = 0, max(count for _, count in networks)
        for batch in images:
            needed = batch[: enough - start].cpu()
            yield len(needed), [network.prepare(needed[: max(0, count - start)]) for network, count in networks]
            start += len(batch)
            if start >= enough:
                return

    for size, inputs in _prefetch(prepared_batches()):
        for k, ((network, count), x) in enumerate(zip(networks, inputs, strict=True)):
            if len(x):
                with torch.no_grad():
                    batch = network(x.to(device)).cpu()
                if done == 0:
                    # In one piece: features of single batches, between the networks' feature maps, would fragment
                    # the memory.
                    features_of[k] = batch.new_empty(count, batch.shape[1])
                features_of[k][done : done + len(batch)] = batch
                if not batch.isfinite().all():
                    which = f"images {done} to {done + size - 1}"
                    raise Fault(f"The features by the {network.name} network of {which} are not all finite.")
        progress(done := done + size)
    return [features[:done] for features in features_of]


def kept_features(
    images: Tensor,
    network: Network,
    pretrained: bool,
    device: torch.device,
    progress: Callable[[int], object] = lambda done: None,
) -> Tensor:
    """Return the features of images, from the cache if they were computed before; see `imletriton.data.cache`.

    Args:
        images: uint8 [n, 3, H, W], on the CPU.
        network: The network.
        pretrained: Whether the network has pretrained weights, not random ones.
        device: The device that the network is on.
        progress: Called with the number of images done so far, if they are computed.

    Returns:
        float32 [n, d], on the CPU.

    Raises:
        Fault: Some features are not finite.
    """
    content = hashlib.sha256(images.numpy().tobytes() + str(tuple(images.shape)).encode()).hexdigest()[:24]
    weights = "pretrained" if pretrained else "random"
    file = cache.folder("features") / f"{network.name}-{weights}-{FORMAT}-{content}.npy"
    with contextlib.suppress(cache.DamagedError):
        if (kept := cache.load(file, (len(images), None), np.float32)) is not None:
            return torch.from_numpy(kept)
    (computed,) = features(images.split(BATCH), [(network, len(images))], device, progress)
    cache.save(file, computed.numpy())
    return computed


def _prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yield the items in order; another thread computes the next item while the caller uses the current one."""
    with ThreadPoolExecutor(1) as worker:
        upcoming = worker.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = worker.submit(next, items, None)
            yield item
