"""The metrics themselves, against independent implementations."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_fidelity.metric_prc import prc_features_to_metric

from imletriton.metrics import kernel_distance, precision_recall
from imletriton.metrics.manifolds import kth_distance
from imletriton.search import within


def by_definition(samples: Tensor, data: Tensor, k: int) -> tuple[float, float]:
    """Equations 1 to 3 of the paper, in NumPy and without any care for speed."""

    def share(queries: np.ndarray, points: np.ndarray) -> float:
        between = np.linalg.norm(points[:, None] - points[None], axis=2)
        radius = np.sort(between + np.diag(np.full(len(points), np.inf)), axis=1)[:, k - 1]
        return float((np.linalg.norm(queries[:, None] - points[None], axis=2) <= radius).any(1).mean())

    a, b = samples.double().numpy(), data.double().numpy()
    return share(a, b), share(b, a)


@given(
    m=st.integers(5, 60),
    n=st.integers(5, 60),
    d=st.integers(1, 20),
    k=st.integers(1, 4),
    gap=st.sampled_from([0.0, 0.5, 3.0]),
    offset=st.sampled_from([0.0, 1e3]),
    twins=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_precision_and_recall_are_the_papers(
    m: int, n: int, d: int, k: int, gap: float, offset: float, twins: bool, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    samples, data = torch.randn(m, d, generator=g) + offset + gap, torch.randn(n, d, generator=g) + offset
    if twins:
        samples[::2] = data[torch.arange(0, m, 2) % n]
        data[1::3] = data[0]
    assert precision_recall(samples, data, k) == pytest.approx(by_definition(samples, data, k), abs=1e-12)


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    g = torch.Generator().manual_seed(0)
    samples, data = torch.randn(700, 24, generator=g), 1.1 * torch.randn(400, 24, generator=g) + 0.1
    theirs = prc_features_to_metric(samples, data, prc_neighborhood=3, verbose=False)
    assert precision_recall(samples, data) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert 0 < theirs["recall"] < theirs["precision"] < 1


def test_the_same_pictures_are_precise_and_recalled_and_far_ones_neither() -> None:
    data = torch.randn(50, 8)
    assert precision_recall(data, data) == (1, 1)
    assert precision_recall(data + 100, data) == (0, 0)
    one = torch.ones(20, 8)
    assert precision_recall(one, one[:5]) == (1, 1)
    assert precision_recall(one + 1e-3, one) == (0, 0)


def test_the_kth_neighbour_is_another_point() -> None:
    points = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    assert kth_distance(points, 1).tolist() == [0, 0, 1, 2]
    assert kth_distance(points + 1e4, 2).tolist() == [1, 1, 1, 3]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"each of 4 points has no {k} others"):
            kth_distance(points, k)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_each_ball_holds_the_neighbours_that_give_its_radius(offset: float) -> None:
    points = torch.randn(300, 40, generator=torch.Generator().manual_seed(0)) + offset
    points[200:] = points[:100].clone()
    for k in (1, 4):
        ball = within(points, points, kth_distance(points, k)).pairs[:, 1]
        assert (ball.bincount() >= k + 1).all()


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    g = np.random.default_rng(0)
    x, y = g.normal(size=(40, 30)), g.normal(size=(40, 30)) + 0.3

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / 30 + 1) ** 3

    n = 40  # as many of both, so that every subset is the whole
    own = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(x, x), kernel(y, y)))
    expected = own - 2 * kernel(x, y).mean()
    mean, deviation = kernel_distance(torch.from_numpy(x), torch.from_numpy(y))
    assert mean == pytest.approx(expected, rel=1e-9)
    assert deviation < 1e-12
    more = torch.from_numpy(np.concatenate([x, x + 0.1]))
    assert kernel_distance(more, torch.from_numpy(y)) == kernel_distance(more, torch.from_numpy(y))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(more, more[:1])
