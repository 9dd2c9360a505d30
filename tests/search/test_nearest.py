"""The search through its public interface, by each engine: the CPU's, the CPU's without bfloat16, and Triton's."""

import warnings

import numpy as np
import problems as shared
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    KERNEL_EXAMPLES,
    KINDS,
    TIGHT,
    Problem,
    device_of,
    distances,
    is_interpreted,
    problems,
    searched_by,
    vectors,
)
from torch import Tensor

import imletriton
from imletriton.search import NearestSearch, bounds, nearest, within
from imletriton.search.prepared import as_tensor

engine = shared.engine  # the fixture

NUMBERS = st.sampled_from([None, 1, 2, 3, 8, 40, 100])  # of neighbours


def least(sq: Tensor, admissible: Tensor, k: int) -> Tensor:
    """The k least squared distances of each row, float64 [n, k], inf where there are fewer."""
    sq = torch.where(admissible, sq, torch.inf)
    return torch.cat([sq, sq.new_full((len(sq), k), torch.inf)], 1).sort(1).values[:, :k]


def check(search: NearestSearch, sq: Tensor, radius: float, searching: Tensor | None = None) -> None:
    """What search holds against all squared distances, with the contract's tolerances."""
    finite = sq.isfinite().all(0)
    surely = finite & (sq >= (radius * (1 + TIGHT)) ** 2).all(0) if radius else finite
    perhaps = finite & (sq >= (radius * (1 - TIGHT)) ** 2).all(0) if radius else finite
    assert int(surely.sum()) <= int(search.accepted) <= int(perhaps.sum())
    assert int(search.accepted + search.rejected) == sq.shape[1]
    shape = sq.shape[:1] if search.k is None else (len(sq), search.k)
    assert (search.index.shape, search.sq_distance.shape, search.exact_sq_distance.shape) == (shape, shape, shape)
    k = search.k or 1
    index, got = search.index.cpu().view(-1, k), search.sq_distance.cpu().view(-1, k)
    found, (nearer, farther) = index >= 0, (slice(None, -1), slice(1, None))
    assert torch.equal(found, got.isfinite())
    seeking = torch.ones(len(sq), dtype=torch.bool) if searching is None else searching
    assert not found[~seeking].any()
    expected = least(sq, surely, k)
    assert (found | expected.isinf())[seeking].all()
    assert perhaps[index[found]].all()
    chosen = torch.where(found, sq.gather(1, index.clamp(min=0)) if sq.shape[1] else expected, torch.inf)
    assert (chosen <= expected * (1 + 2 * TIGHT))[seeking].all()  # squares: twice the distances' tolerance
    torch.testing.assert_close(got.double(), chosen, rtol=1e-5, atol=2.0**-149)  # the least that float32 can tell
    in_order = (got[:, nearer] < got[:, farther]) | (index[:, nearer] < index[:, farther])  # so none is there twice
    assert (in_order & (got[:, nearer] <= got[:, farther]) | ~found[:, farther]).all()


def run(
    engine: str, problem: Problem, radius: float = 0.0, odd_ones_only: bool = False, k: int | None = None
) -> NearestSearch:
    queries, samples, sizes = problem
    searching = torch.arange(len(queries)) % 2 == 1 if odd_ones_only else None
    device = device_of(engine)
    search = NearestSearch(queries.to(device), None if searching is None else searching.to(device), radius, k)
    for chunk in samples.to(device).split(sizes):
        search.update(chunk)
    check(search, distances(queries, samples), radius, searching)
    return search


@given(problems(), NUMBERS)
def test_the_nearest_samples_are_found_whatever_the_chunks(problem: Problem, k: int | None) -> None:
    run("cpu", problem, k=k)


@given(problems(), st.floats(0.0, 6.0), st.booleans(), NUMBERS)
def test_rejected_samples_are_never_chosen(problem: Problem, radius: float, odd_ones_only: bool, k: int | None) -> None:
    run("cpu", problem, radius, odd_ones_only, k)


@given(problems(most=100), st.sampled_from([0.0, 0.0, 1.0, 5.0]), st.booleans(), st.sampled_from([None, 3]))
@settings(max_examples=KERNEL_EXAMPLES)
def test_the_kernels_keep_the_same_contract(
    problem: Problem, radius: float, odd_ones_only: bool, k: int | None
) -> None:
    pytest.importorskip("triton")
    with searched_by("triton"):
        run("triton", problem, radius, odd_ones_only, k)


@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each_kind(engine: str, kind: str) -> None:
    n, m, d = (3, 100, 40) if is_interpreted(engine) else (60, 2500, 130)
    both = vectors(kind, n + m, d, torch.Generator().manual_seed(1))
    numbers = [None, 5]
    for k in numbers[KINDS.index(kind) % 2 :][:1] if is_interpreted(engine) else numbers:  # by turns
        run(engine, (both[:n], both[n:], [m // 3, 0, m - m // 3]), k=k)


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_samples_around_the_radius(engine: str, share: float) -> None:
    n, m, d = (4, 24, 40) if is_interpreted(engine) else (12, 70, 40)
    queries = vectors("sphere", n, d, torch.Generator().manual_seed(2))
    towards = vectors("sphere", m, d, torch.Generator().manual_seed(3))
    reach = 0.15 * torch.linspace(1 - 1e-3, 1 + 1e-3, m)[:, None]
    samples = queries[torch.arange(m) % n] + towards * reach
    run(engine, (queries, samples, [m]), 0.15 * share)


def test_a_sample_at_the_radius_itself_is_admissible(engine: str) -> None:
    device = device_of(engine)
    search = NearestSearch(torch.zeros(1, 3, device=device), reject_radius=2.0)
    search.update(torch.tensor([[0.0, 1.9, 0.0], [0.0, 2.0, 0.0]], device=device))
    assert (search.index.tolist(), search.sq_distance.tolist(), int(search.rejected)) == ([1], [4.0], 1)


@pytest.mark.parametrize("bits", [8, 11, 24])  # bfloat16's, float16's and float32's
def test_rounding_may_go_the_same_way_in_all_dimensions(engine: str, bits: int) -> None:
    """The worst case of the bound: the query is rounded down by half a unit throughout, the first sample up."""
    half = 2.0**-bits
    queries = torch.tensor([1 + half, -1 - half])[:, None].expand(2, 120)
    samples = torch.tensor([1 + 1.01 * half, 1 + half, -1 - 1.01 * half, -1 - half])[:, None].expand(4, 120)
    run(engine, (queries, samples, [4]))
    run(engine, (queries, samples, [4]), 0.1 * half)


def test_when_all_are_rejected_none_is_found(engine: str) -> None:
    queries, samples = torch.randn(3, 5), torch.randn(30, 5)
    run(engine, (queries, samples, [30]), 100.0)


def test_ties_go_to_the_lowest_index(engine: str) -> None:
    queries, one = torch.randn(2, 17, device=device_of(engine)), torch.randn(1, 17, device=device_of(engine))
    search = NearestSearch(queries)
    for size in (3, 0, 140):
        search.update(one.expand(size, -1))
    assert search.index.tolist() == [0] * 2
    search = NearestSearch(queries)
    search.update(torch.cat([one + 3, one, one + 3, one.expand(140, -1)]))
    assert search.index.tolist() == [1] * 2


@pytest.mark.parametrize("sizes", [[400], [1] * 8 + [392], [150, 0, 250]])
def test_ties_at_the_last_place_go_to_the_lowest_indices(engine: str, sizes: list[int]) -> None:
    one, near = torch.randn(1, 40), torch.randn(1, 40) / 100
    samples = (one + near).repeat(400, 1)
    samples[[3, 9, 30]] = one + 10  # farther
    samples[[250, 320]] = one  # nearer
    search = run(engine, (torch.cat([one, one + 1]), samples, sizes), k=6)
    assert search.index[0].tolist() == [250, 320, 0, 1, 2, 4]


def test_ties_farther_than_many_different_samples_are_settled() -> None:
    """All samples lie on a sphere about the query but for 50, so that no product can tell them apart."""
    query, directions = torch.ones(1, 3), torch.eye(3, dtype=torch.float32)
    samples = query + torch.cat([directions, -directions]).repeat(500, 1)
    samples[1000:1050] = query + torch.linspace(0.1, 0.9, 50).flip(0)[:, None] * directions[0]
    search = run("cpu", (query, samples, [3000]), k=53)
    assert search.index[0].tolist() == [*range(1049, 999, -1), 0, 1, 2]


@pytest.mark.parametrize("m", [0, 1, 2, 3, 4, 70])
def test_more_neighbours_than_samples(engine: str, m: int) -> None:
    samples = torch.randn(m, 40)
    samples[1:2, 3] = torch.nan
    run(engine, (torch.randn(4, 40), samples, [m]), k=3)
    run(engine, (torch.randn(1, 40), samples, [m]), k=max(1, m))


def test_very_many_neighbours() -> None:
    both = torch.randn(3020, 48)
    run("cpu", (both[:20], both[20:], [1500, 1500]), k=1400)


def test_no_queries_and_no_samples(engine: str) -> None:
    device = device_of(engine)
    search = NearestSearch(torch.zeros(0, 4, device=device), reject_radius=1.0)
    search.update(torch.randn(5, 4, device=device))
    assert (search.index.tolist(), int(search.accepted)) == ([], 5)
    search = NearestSearch(torch.zeros(2, 4, device=device))
    search.update(torch.zeros(0, 4, device=device))
    assert search.index.tolist() == [-1, -1]


@pytest.mark.parametrize("k", [None, 4])
def test_float64_is_searched_on_the_cpu(k: int | None) -> None:
    queries, samples = torch.randn(4, 50).double(), torch.randn(60, 50).double()
    run("cpu", (queries, samples, [60]), k=k)
    for size, offset in ((1e-9, 1), (1e-7, 1), (1e-3, 1e4), (1e-6, 1e4)):
        moved = queries * size + offset, samples * size + offset
        run("cpu", (*moved, [60]), k=k)
        run("cpu", (*moved, [60]), k=k, radius=float(distances(*moved).min(0).values.median().sqrt()) * 1.001)


def test_a_float64_vector_whose_square_overflows_hides_no_other() -> None:
    queries, samples = torch.randn(3, 4).double(), torch.randn(10, 4).double()
    expected = nearest(queries, samples)
    result = nearest(queries, torch.cat([samples, torch.full((1, 4), 1e160, dtype=torch.float64)]))
    assert torch.equal(result.index, expected.index)
    with pytest.raises(ValueError, match="shorter than 1e154"):
        nearest(queries * 1e160, samples)


@pytest.mark.parametrize("size", [1e20, 1e33, 1e37])
def test_the_longest_vectors(engine: str, size: float) -> None:
    both = (torch.randn(80, 40) * size).to(device_of(engine))
    search = NearestSearch(both[:8])
    search.update(both[8:])
    sq, index = distances(both[:8].cpu(), both[8:].cpu()).min(1)
    assert torch.equal(search.index.cpu(), index)
    torch.testing.assert_close(search.exact_sq_distance.cpu(), sq, rtol=1e-5, atol=0)


def test_rejection_holds_a_block_of_products_however_many_queries() -> None:
    search = NearestSearch(torch.randn(40_000, 16), reject_radius=1.0)
    search.update(torch.randn(2100, 16))
    assert max(held.numel() for held in bounds.SCRATCH.held.values()) <= 2 * bounds.BLOCK_VALUES


def test_a_gpu_keeps_so_many_neighbours_only() -> None:
    queries = torch.randn(3, 4)
    with searched_by("triton"), pytest.raises(ValueError, match="at most 1024 on a GPU, not 1025"):
        NearestSearch(queries, k=1025)


def test_the_function_is_the_packages_too() -> None:
    queries, pool = torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]])
    result = imletriton.nearest(queries, pool)
    assert result.index.tolist() == [1, 0]
    assert result.sq_distance.tolist() == [1, 1]
    assert imletriton.nearest is nearest
    both = imletriton.nearest(queries, pool, k=3)
    assert both.index.tolist() == [[1, 0, -1], [0, 1, -1]]
    assert both.sq_distance.tolist() == [[1, 16, torch.inf], [1, 16, torch.inf]]


def test_rows_need_not_be_contiguous(engine: str) -> None:
    queries, samples = torch.randn(4, 20)[:, ::2], torch.randn(90, 30)[:, :10]
    run(engine, (queries, samples, [90]))
    run(engine, (queries, torch.randn(10, 20).T, [20]), k=3)


def test_the_same_input_gives_the_same_result(engine: str) -> None:
    queries, samples = (torch.randn(k, 33, device=device_of(engine)) for k in (3, 30))
    first, second = (NearestSearch(queries, reject_radius=6.0) for _ in range(2))
    for search in (first, second):
        search.update(samples)
    assert torch.equal(first.index, second.index)
    assert torch.equal(first.sq_distance, second.sq_distance)


def test_products_have_few_shapes_however_many_queries_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps most of a megabyte for each shape of a bfloat16 product, so a run with thresholds would swell."""
    shapes, mm = set(), torch.mm

    def noted(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        if a.dtype == torch.bfloat16:
            shapes.add((a.shape, b.shape))
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", noted)
    monkeypatch.setattr(bounds, "multiplies_bfloat16", lambda device: True)
    queries, samples = torch.randn(70, 40), torch.randn(200, 40)
    expected = nearest(queries, samples)
    shapes.clear()
    for k in range(1, 71):
        search = NearestSearch(queries, torch.arange(70) < k)
        search.update(samples)
        assert torch.equal(search.index[:k], expected.index[:k])
        torch.testing.assert_close(search.sq_distance[:k], expected.sq_distance[:k])
        assert (search.index[k:] == -1).all()
    assert len(shapes) == 3


def test_memory_does_not_grow_with_the_pool() -> None:
    queries = torch.randn(50, 64)
    search = NearestSearch(queries)
    held = []
    for _ in range(3):
        search.update(torch.randn(9000, 64))
        held.append(sum(t.numel() * t.element_size() for t in bounds.SCRATCH.held.values()))
    assert held[0] == held[2] <= 2**27


def test_wrong_input_is_named() -> None:
    queries = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"\[c, 4\] like the queries, not \[2, 5\]"):
        nearest(queries, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"float64 .*float32"):
        nearest(queries, torch.randn(2, 4).double())
    with pytest.raises(ValueError, match=r"meta, queries .* cpu"):
        nearest(queries, torch.randn(2, 4, device="meta"))
    with pytest.raises(ValueError, match="finite"):
        nearest(torch.tensor([[torch.nan]]), torch.randn(2, 1))
    with pytest.raises(ValueError, match=r"int64 \[3\]"):
        nearest(torch.ones(3, dtype=torch.int64), queries)
    with pytest.raises(ValueError, match=r"bool \[3\]"):
        NearestSearch(queries, searching=torch.ones(2, dtype=torch.bool))
    for k in (None, 3):
        with pytest.raises(ValueError, match="the pool is empty, so no query has a nearest sample"):
            nearest(queries, queries[:0], k)
    with pytest.raises(ValueError, match="reject_radius"):
        NearestSearch(queries, reject_radius=-1.0)
    for k in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="k must be an integer of at least 1"):
            nearest(queries, queries, k)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays_are_searched_where_they_lie(dtype: type) -> None:
    rng = np.random.default_rng(0)
    queries, pool = rng.standard_normal((7, 5)).astype(dtype), rng.standard_normal((40, 5)).astype(dtype)
    tensors = torch.from_numpy(queries), torch.from_numpy(pool)
    assert as_tensor(pool).data_ptr() == pool.ctypes.data
    for layout in (pool, np.asfortranarray(pool), np.repeat(pool, 2, 0)[::2], np.flip(pool[::-1], 0)):
        layout.flags.writeable = False  # as a memory map of a file may be
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for mixed in (queries, tensors[0]):
                found, close = nearest(mixed, layout, 2), within(mixed, layout, 1.5)
                assert all(map(torch.equal, found, nearest(*tensors, 2)))
                assert torch.equal(close.count, within(*tensors, 1.5).count)
    radii = rng.random(40)
    assert torch.equal(within(queries, pool, radii).pairs, within(*tensors, torch.from_numpy(radii)).pairs)
    search = NearestSearch(queries, np.arange(7) < 3)
    for chunk in (pool[:0], pool[:30], pool[30:]):
        search.update(chunk)
    assert torch.equal(search.index[:3], nearest(*tensors).index[:3])
    assert (search.index[3:] == -1).all()
    with pytest.raises(ValueError, match="an array of object cannot be searched: convert it to float32"):
        nearest(queries, pool.astype(object))
