import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import imletriton
from imletriton.nearest import NearestSearch, nearest


def reference(queries: Tensor, samples: Tensor, radius: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """All squared distances in float64 [n, m], which samples are admissible, and the least distances."""
    sq = (queries.double()[:, None] - samples.double()[None]).square().sum(2)
    finite = samples.isfinite().all(1)
    admissible = finite & ((sq >= radius**2).all(0) if radius else True)
    sq = torch.where(admissible[None], sq, torch.inf)
    return sq, admissible, sq.amin(1) if len(samples) else sq.new_full((len(queries),), torch.inf)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    n, m, d = draw(st.integers(1, 9)), draw(st.integers(0, 40)), draw(st.integers(1, 37))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    offset, scale = draw(st.sampled_from([(0, 1), (1e4, 1e-2), (0, 1e15), (0, 1e-15)]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])) if scale == 1 else torch.float32
    queries = (torch.randn(n, d, generator=generator) * scale + offset).to(dtype)
    samples = (torch.randn(m, d, generator=generator) * scale + offset).to(dtype)
    if draw(st.booleans()) and m > 1:
        samples[m // 2 :] = samples[: m - m // 2].clone()  # duplicates
    if draw(st.booleans()) and m:
        samples[-1] = queries[0]  # distance 0
    if draw(st.booleans()) and m:
        samples[0, 0] = draw(st.sampled_from([torch.inf, -torch.inf, torch.nan]))
    cuts = sorted(draw(st.lists(st.integers(0, m), max_size=4)))
    return queries, samples, [b - a for a, b in zip([0, *cuts], [*cuts, m], strict=True)]


@given(problems())
@settings(max_examples=200, deadline=None)
def test_the_nearest_sample_is_found_whatever_the_chunks(problem: tuple[Tensor, Tensor, list[int]]) -> None:
    queries, samples, sizes = problem
    sq, admissible, least = reference(queries, samples)
    search = NearestSearch(queries)
    for chunk in samples.split(sizes):
        search.update(chunk)
    assert int(search.accepted) == int(admissible.sum())
    assert int(search.rejected) == len(samples) - int(admissible.sum())
    none = least.isinf()
    assert torch.equal(search.index == -1, none)
    assert search.sq_distance[none].isinf().all()
    chosen = sq.gather(1, search.index.clamp_min(0)[:, None])[:, 0] if len(samples) else least
    assert (chosen[~none] <= least[~none] * (1 + 1e-6)).all()
    torch.testing.assert_close(search.sq_distance[~none].double(), least[~none], rtol=1e-5, atol=0)


@given(problems(), st.floats(0.0, 6.0))
@settings(max_examples=100, deadline=None)
def test_rejected_samples_are_never_chosen(problem: tuple[Tensor, Tensor, list[int]], radius: float) -> None:
    queries, samples, sizes = problem
    _, admissible, least = reference(queries, samples, radius)
    searching = torch.arange(len(queries)) % 2 == 0
    search = NearestSearch(queries, searching, radius)
    for chunk in samples.split(sizes):
        search.update(chunk)
    assert int(search.accepted) == int(admissible.sum())
    assert (search.index[~searching] == -1).all()
    found = search.index[searching]
    assert torch.equal(found == -1, least[searching].isinf())
    assert admissible[found[found >= 0]].all()


def test_ties_go_to_the_lowest_index() -> None:
    queries, one = torch.randn(5, 17), torch.randn(1, 17)
    search = NearestSearch(queries)
    for size in (3, 0, 5000):
        search.update(one.expand(size, -1))
    assert search.index.tolist() == [0] * 5


def test_the_function_is_the_packages_too() -> None:
    queries, pool = torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]])
    result = imletriton.nearest(queries, pool)
    assert result.index.tolist() == [1, 0]
    assert result.sq_distance.tolist() == [1, 1]
    assert imletriton.nearest is nearest


def test_rows_need_not_be_contiguous() -> None:
    queries, pool = torch.randn(4, 20)[:, ::2], torch.randn(10, 30).T[:10].T
    assert torch.equal(nearest(queries, pool).index, nearest(queries.contiguous(), pool.contiguous()).index)


def test_wrong_input_is_named() -> None:
    queries = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"\[c, 4\] like the queries, not \[2, 5\]"):
        nearest(queries, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"float64 .*float32"):
        nearest(queries, torch.randn(2, 4).double())
    with pytest.raises(ValueError, match="finite"):
        nearest(torch.tensor([[torch.nan]]), torch.randn(2, 1))
    with pytest.raises(ValueError, match=r"int64 \[3\]"):
        nearest(torch.ones(3, dtype=torch.int64), queries)
    with pytest.raises(ValueError, match=r"bool \[3\]"):
        NearestSearch(queries, searching=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="reject_radius"):
        NearestSearch(queries, reject_radius=-1.0)
