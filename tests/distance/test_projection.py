import pytest
import torch
from torch import Tensor

from imletriton.data import load_points
from imletriton.distance import LPIPS, Pixels
from imletriton.distance.projection import CountSketch

K = 64
SEEDS = 400


def differences(kind: str) -> Tensor:
    """Difference vectors of the kind that a search meets: float32 [b, d]."""
    torch.manual_seed(0)
    if kind == "random":
        return torch.randn(4, 3001)
    if kind == "sparse":
        return torch.randn(4, 3001) * (torch.rand(4, 3001) < 0.01)
    if kind == "low-rank":  # whole rows move together, as feature maps do
        return (torch.randn(4, 60, 1) * torch.randn(4, 1, 50)).flatten(1)
    faces = load_points("faces", 32)[:8]
    distance = Pixels() if kind == "pixels" else LPIPS("alex", 0.1, pretrained=False, seed=0)
    with torch.no_grad():
        flat = torch.cat(distance.embed(faces), 1)
    return flat[:4] - flat[4:]


@pytest.mark.parametrize("kind", ["random", "sparse", "low-rank", "pixels", "lpips"])
def test_squared_distances_are_kept(kind: str) -> None:
    """Unbiased, and spread at most 1.5 times a dense Gaussian projection's sqrt(2/k)."""
    x = differences(kind)
    true = x.double().square().sum(1)
    ratio = torch.stack([CountSketch(x.shape[1], K, seed)(x).double().square().sum(1) / true for seed in range(SEEDS)])
    dense = (2 / K) ** 0.5
    assert (ratio.mean(0) - 1).abs().max() < 4 * dense / SEEDS**0.5
    assert ratio.std(0).max() <= 1.5 * dense


@pytest.mark.parametrize("dim", [1, 63, 64])
def test_where_nothing_must_shrink_distances_are_exact(dim: int) -> None:
    x = torch.randn(5, dim)
    torch.testing.assert_close(CountSketch(dim, K, 0)(x).square().sum(1), x.square().sum(1))


def test_every_coordinate_is_used_once() -> None:
    for dim in (65, 128, 1000):
        sketch = CountSketch(dim, K, 1)
        columns = sketch(torch.eye(dim))
        assert torch.equal(columns.abs().sum(1), torch.ones(dim))


@pytest.mark.parametrize(("dim", "row"), [(1000, None), (999, 17), (960, 48), (37, 5), (64, 64)])
def test_coordinates_move_as_one_by_one(dim: int, row: int | None) -> None:
    """Whole pieces at once, against the definition: each coordinate by itself, its row shifted round the buckets."""
    sketch = CountSketch(dim, K, 2, row)
    x = torch.randn(3, dim, dtype=torch.float64)
    i = torch.arange(dim)
    bucket = (i % sketch.row + sketch.shift[i // sketch.row]) % K
    expected = torch.zeros(3, K, dtype=torch.float64).index_add_(1, bucket, x * sketch.sign)
    torch.testing.assert_close(sketch(x), expected)
    assert sketch(x[:0]).shape == (0, K)


def test_the_same_seed_gives_the_same_projection() -> None:
    x = torch.randn(3, 1000)
    assert torch.equal(CountSketch(1000, K, 5)(x), CountSketch(1000, K, 5)(x))
    assert not torch.equal(CountSketch(1000, K, 5)(x), CountSketch(1000, K, 6)(x))


def test_it_takes_less_than_two_bytes_a_coordinate() -> None:
    sketch = CountSketch(100_000, 800, 0)
    assert sum(b.numel() * b.element_size() for b in sketch.buffers()) <= 2 * 100_000
