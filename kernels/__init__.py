"""Triton kernels, one operation a file. They know tensors only; imported as `imletriton.kernels`."""
