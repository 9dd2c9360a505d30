"""Nearest-neighbour search by imletriton and by the libraries that a user could choose instead.

Each method is a function of queries [n, d] and samples [m, d], float32 on one device. It returns squared distances [n]
(None if the library gives none) and indices [n]. The functions of this module prepare a method for a device, and raise
Missing, with the reason, if the method cannot run there.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from imletriton.search import nearest

Method = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor]]
BLOCK = 4096  # samples


class Missing(Exception):  # noqa: N818
    """Why a method cannot be measured here."""


def ours(device: torch.device) -> Method:
    return nearest


def cdist(device: torch.device) -> Method:
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        distance, index = torch.cdist(x, y).min(1)
        return distance.square(), index

    return run


def of_block(x: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least |y|^2 - 2 x . y over the samples y of a block for each query x, [n], and its index, [n]."""
    value, index = torch.addmm(block.square().sum(1), x, block.T, alpha=-2).min(1)
    return value, index


def in_blocks(device: torch.device, step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = of_block) -> Method:
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.full((len(x),), torch.inf, device=x.device)
        where = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        for start in range(0, len(y), BLOCK):
            value, index = step(x, y[start : start + BLOCK])
            better = value < best
            best, where = torch.where(better, value, best), torch.where(better, index + start, where)
        return best + x.square().sum(1), where

    return run


def in_compiled_blocks(device: torch.device) -> Method:
    return in_blocks(device, torch.compile(of_block, dynamic=False))


def flash_kmeans(device: torch.device) -> Method:
    only_on("cuda", device)
    assign = load("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    return lambda x, y: (None, assign(x[None], y[None], x.square().sum(1)[None])[0])


def faiss_cpu(device: torch.device) -> Method:
    only_on("cpu", device)
    knn = load("faiss").knn

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sq, index = knn(x.numpy(), y.numpy(), 1)
        return torch.from_numpy(sq[:, 0]), torch.from_numpy(index[:, 0])

    return run


def faiss_gpu(device: torch.device) -> Method:
    only_on("cuda", device)
    faiss = load("faiss")
    if not hasattr(faiss, "StandardGpuResources"):
        raise Missing("faiss without GPU support")
    load("faiss.contrib.torch_utils")
    resources = faiss.StandardGpuResources()

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sq, index = faiss.knn_gpu(resources, x, y, 1)
        return sq[:, 0], index[:, 0]

    return run


def keops(device: torch.device) -> Method:
    lazy = load("pykeops.torch").LazyTensor

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        sq, index = lazy(x[:, None]).sqdist(lazy(y[None])).min_argmin(dim=1)
        return sq[:, 0], index[:, 0]

    return run


def scikit_learn(device: torch.device) -> Method:
    only_on("cpu", device)
    argmin = load("sklearn.metrics").pairwise_distances_argmin_min

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        index, distance = argmin(x.numpy(), y.numpy())
        return torch.from_numpy(distance).square(), torch.from_numpy(index)

    return run


METHODS: dict[str, Callable[[torch.device], Method]] = {
    "imletriton": ours,
    "torch.cdist + min": cdist,
    "addmm in blocks + min": in_blocks,
    "the same, torch.compile": in_compiled_blocks,
    "flash-kmeans": flash_kmeans,
    "faiss, GPU": faiss_gpu,
    "faiss, CPU": faiss_cpu,
    "pykeops": keops,
    "scikit-learn": scikit_learn,
}


def only_on(kind: str, device: torch.device) -> None:
    if device.type != kind:
        raise Missing("needs CUDA" if kind == "cuda" else "for the CPU")


def load(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a package may fail to load in many ways
        raise Missing(f"not installed: {error}") from error
