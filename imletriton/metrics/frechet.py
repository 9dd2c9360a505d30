"""The Frechet distance between two sets of features, exact even if they are few."""

import math

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute the Frechet distance between two sets of features, as in FID (Heusel et al. 2017).

    With means mu and covariances S, it is (Dowson and Landau 1982)

        |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    Let A and B be the centred features. The eigenvalues of S_a S_b are the squared singular values of
    A B^T / sqrt((n - 1)(m - 1)), so tr (S_a S_b)^(1/2) is the nuclear norm of that matrix: no square root of a singular
    matrix is needed. Of the decomposition A = QR, only R (at most [d, d]) is needed.

    Args:
        a: Features [n, d], with n at least 2.
        b: Features [m, d], with m at least 2.

    Returns:
        The distance, computed in float64; never negative.

    Raises:
        ValueError: The shapes do not fit.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 features of one length are needed, not {[*a.shape]} and {[*b.shape]}")
    a, b = a.double(), b.double()
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    triangles = [torch.linalg.qr(x, mode="r").R for x in centred]
    nuclear_norm = torch.linalg.matrix_norm(triangles[0] @ triangles[1].T, "nuc")
    traces = sum(x.square().sum() for x in centred)
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + traces - 2 * nuclear_norm))
