"""All pairs within a radius, through the public interface, by each engine."""

import problems as shared
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import KINDS, Problem, device_of, distances, is_interpreted, problems, vectors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import imletriton
from imletriton.search import Within, bounds, cpu, within
from imletriton.search.bounds import sq_distances

engine = shared.engine  # the fixture

SHARES = [0.0, 0.01, 0.2, 0.8, 1.0]  # of the pairs that a radius holds


def check(engine: str, queries: Tensor, samples: Tensor, radius: float | Tensor) -> Within:
    """The result against all distances in float64; differences in float32 are right to 2^-24 each."""
    device = device_of(engine)
    moved = radius.to(device) if isinstance(radius, Tensor) else radius
    result = within(queries.to(device), samples.to(device), moved)
    sq, radii = distances(queries, samples), torch.as_tensor(radius, dtype=torch.float64)
    low, high = (torch.where(radii >= 0, radii.square() * (1 + s * 2.0**-22), -1) for s in (-1, 1))
    finite = samples.isfinite().all(1)
    surely, perhaps = (sq <= low) & finite, (sq <= high) & finite
    count, pairs = result.count.cpu(), result.pairs.cpu()
    assert (count.dtype, pairs.dtype, count.shape) == (torch.int64, torch.int64, queries.shape[:1])
    near = torch.zeros(sq.shape, dtype=torch.bool)
    near[pairs[:, 0], pairs[:, 1]] = True
    assert torch.equal(pairs, near.nonzero())  # sorted, none twice
    assert torch.equal(count, near.sum(1))
    assert not (surely & ~near).any()
    assert not (near & ~perhaps).any()
    return result


def some_radius(queries: Tensor, samples: Tensor, share: float) -> float:
    """The exact distance of a pair that has `share` of all pairs below it."""
    i, j = torch.cartesian_prod(torch.arange(len(queries)), samples.isfinite().all(1).nonzero()[:, 0]).unbind(1)
    sq = sq_distances(queries, samples, i, j).sort().values
    return float(sq[int(share * (len(sq) - 1))].sqrt()) if len(sq) else 1.0


@given(problems(), st.sampled_from(SHARES))
def test_one_radius(problem: Problem, share: float) -> None:
    queries, samples, _ = problem
    check("cpu", queries, samples, some_radius(queries, samples, share))


@given(problems(), st.randoms(use_true_random=False))
def test_a_radius_for_each_sample(problem: Problem, random: object) -> None:
    queries, samples, _ = problem
    shares = [random.choice([*SHARES, *SHARES, None]) for _ in samples]  # type: ignore[attr-defined]
    odd = [random.choice([0.0, torch.inf, -1.0, torch.nan]) for _ in samples]  # type: ignore[attr-defined]
    radii = [
        some_radius(queries, samples[j : j + 1], share) if share is not None else odd[j]
        for j, share in enumerate(shares)
    ]
    check("cpu", queries, samples, torch.tensor(radii, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each_kind(engine: str, kind: str) -> None:
    n, m, d = (4, 45, 40) if is_interpreted(engine) else (60, 1500, 50)
    both = vectors(kind, n + m, d, torch.Generator().manual_seed(1))
    shares = [0.001, 0.5]
    for share in shares[KINDS.index(kind) % 2 :][:1] if is_interpreted(engine) else shares:  # by turns
        check(engine, both[:n], both[n:], some_radius(both[:n], both[n:], share))


def test_more_queries_than_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "ROWS", 2000)
    both = vectors("clusters", 4600, 33, torch.Generator().manual_seed(1))
    check("cpu", both[:4500], both[4500:], some_radius(both[:50], both[4500:], 0.2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_at_the_radius_is_within_it(engine: str, kind: str) -> None:
    device = device_of(engine)
    n, m = (3, 12) if is_interpreted(engine) else (20, 50)
    both = vectors(kind, n + m, 40, torch.Generator().manual_seed(2)).to(device)
    queries, samples = both[:n], both[n:]
    search = imletriton.NearestSearch(queries, k=3)
    search.update(samples)
    for row, place in ((0, 0), (1, 1), (2, 2)):
        result = within(queries, samples, float(search.exact_sq_distance[row, place].sqrt()))
        assert [row, int(search.index[row, place])] in result.pairs.tolist()


def test_a_radius_of_0_holds_what_is_equal(engine: str) -> None:
    queries = torch.randn(5, 40) + 100
    samples = torch.cat([queries, queries + 1e-5, queries.flip(0)])
    assert check(engine, queries, samples, 0.0).count.tolist() == [2] * 5


def test_an_infinite_radius_holds_all_finite_samples(engine: str) -> None:
    samples = vectors("mixed", 70, 40, torch.Generator().manual_seed(3))
    samples[[3, 5, 8], 1] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    samples[9] = 3e38
    assert check(engine, torch.randn(2, 40), samples, torch.inf).count.tolist() == [67] * 2
    radius = torch.full((70,), torch.inf)
    assert check(engine, torch.randn(2, 40), samples, radius).count.tolist() == [67] * 2
    assert check(engine, torch.randn(2, 40), samples, 1e30).count.tolist() == [66] * 2


def test_a_long_radius_does_not_spoil_the_others(engine: str) -> None:
    queries, samples = torch.randn(3, 40), torch.randn(90, 40)
    radius = torch.full((90,), 8.5, dtype=torch.float64)
    radius[4] = 1e30
    assert (check(engine, queries, samples, radius).pairs[:, 1] == 4).sum() == 3


def test_other_types_and_strides(engine: str) -> None:
    for dtype in [torch.float16, torch.bfloat16] + [torch.float64] * (engine != "triton"):
        queries, samples = torch.randn(4, 100)[:, ::2].to(dtype), torch.randn(50, 40).to(dtype).T
        check(engine, queries, samples, 9.5)
        check(engine, queries, samples, torch.rand(80).to(dtype)[::2] * 20)


def test_no_queries_and_no_samples(engine: str) -> None:
    assert check(engine, torch.zeros(0, 4), torch.randn(5, 4), 1.0).pairs.tolist() == []
    assert check(engine, torch.zeros(2, 4), torch.zeros(0, 4), torch.zeros(0)).count.tolist() == [0, 0]
    assert check(engine, torch.zeros(2, 4), torch.full((3, 4), torch.nan), torch.inf).count.tolist() == [0, 0]


def test_the_function_is_the_packages_too_and_pairs_are_computed_once() -> None:
    result = imletriton.within(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0], [9.0]]), 4.0)
    assert result.count.tolist() == [2, 3]
    assert "pairs" not in vars(result)
    assert result.pairs.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert result.pairs is result.pairs
    assert imletriton.within is within


class Largest(TorchDispatchMode):
    """Notes the most values that any new tensor has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_counting_all_pairs_holds_only_a_block_of_them() -> None:
    queries, samples = torch.randn(4100, 2), torch.randn(4100, 2)
    with Largest() as largest:
        assert (within(queries, samples, torch.inf).count == 4100).all()
    assert largest.numel <= bounds.BLOCK_VALUES < 4100 * 4100


def test_wrong_input_is_named() -> None:
    queries = torch.randn(3, 4)
    for radius in (-1.0, torch.nan):
        with pytest.raises(ValueError, match="radius must be 0 or more"):
            within(queries, queries, radius)
    with pytest.raises(ValueError, match=r"floating-point \[3\], not torch.float32 \[2\]"):
        within(queries, queries, torch.ones(2))
    with pytest.raises(ValueError, match=r"floating-point \[3\], not torch.int64"):
        within(queries, queries, torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="radius is on meta"):
        within(queries, queries, torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match=r"\[c, 4\] like the queries"):
        within(queries, torch.randn(2, 5), 1.0)
    with pytest.raises(ValueError, match="finite"):
        within(torch.tensor([[torch.nan]]), torch.randn(2, 1), 1.0)


def test_float64_far_from_the_origin() -> None:
    queries, samples = (1e4 + 1e-6 * torch.randn(k, 40).double() for k in (20, 200))
    sq = distances(queries, samples)
    radius = float(sq.median().sqrt()) * (1 + 1e-9)
    assert torch.equal(within(queries, samples, radius).count, (sq <= radius**2).sum(1))


def test_vectors_that_changed_before_the_pairs_were_read_are_noticed(engine: str) -> None:
    queries, samples = torch.zeros(4, 3), torch.randn(40, 3)
    for value in (0.0, 50.0):  # more pairs than were counted, and fewer
        device = device_of(engine)
        result = within(queries.to(device), changing := samples.to(device, copy=True), 1.5)
        changing.fill_(value)
        with pytest.raises(ValueError, match="have changed"):
            _ = result.pairs


def test_an_empty_pool_is_near_no_query() -> None:
    found = within(torch.randn(3, 4), torch.empty(0, 4), torch.inf)
    assert found.count.tolist() == [0, 0, 0]
    assert found.pairs.shape == (0, 2)
