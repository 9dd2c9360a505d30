"""Chooses the search backend: cpu.py or gpu.py."""

from torch import Tensor

from imletriton.search.interface import Backend


def on_gpu(vectors: Tensor) -> bool:
    """Tell whether vectors are on a GPU, so that the Triton kernels search them."""
    return vectors.is_cuda


def backend_of(vectors: Tensor) -> Backend:
    """Return the backend that searches these vectors."""
    if on_gpu(vectors):
        from imletriton.search import gpu  # here, because Triton takes a second to load

        return gpu
    from imletriton.search import cpu

    return cpu
