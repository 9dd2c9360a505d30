"""The Frechet distance between two sets of features, also where they are few."""

import math

import torch
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of features [n, d] and [m, d], n and m at least 2; float64.

    Dowson and Landau (1982), as in FID (Heusel et al. 2017). With A and B the centred features, the eigenvalues of
    S_a S_b are the squared singular values of A B^T / sqrt((n - 1)(m - 1)), so that tr (S_a S_b)^(1/2) is that matrix's
    nuclear norm: no root of a singular matrix, however few the features. Of A = QR only R, at most [d, d], is needed.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"two sets of at least 2 features of one length are needed, not {[*a.shape]} and {[*b.shape]}")
    a, b = a.double(), b.double()
    centred = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]
    roots = [torch.linalg.qr(x, mode="r").R for x in centred]
    both = torch.linalg.matrix_norm(roots[0] @ roots[1].T, "nuc")
    spread = sum(x.square().sum() for x in centred)
    return max(0.0, float((a.mean(0) - b.mean(0)).square().sum() + spread - 2 * both))
