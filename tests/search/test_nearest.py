"""The search through its public interface, by each engine: the CPU's, the CPU's without bfloat16, and Triton's."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import imletriton
from imletriton.search import NearestSearch, nearest, operands

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton's kernels run here; interpreted on a CPU
ENGINES = ["cpu", "cpu without bfloat16", "triton"]
TIGHT = 1e-6  # the contract's relative tolerance for which sample is nearest
Problem = tuple[Tensor, Tensor, list[int]]  # queries [n, d], samples [m, d] and the sizes of chunks
KINDS = ["normal", "offset", "huge", "tiny", "mixed", "clusters", "sphere", "equal", "near duplicates", "half"]


def search_by(
    engine: str, queries: Tensor, searching: Tensor | None = None, radius: float | None = None
) -> NearestSearch:
    search = NearestSearch(queries, searching, radius)
    if engine == "triton" and queries.device.type == "cpu":
        pytest.importorskip("triton")
        from imletriton.kernels.search import TritonSearch

        search._search = TritonSearch(queries, searching, radius or 0.0)
    return search


def device_of(engine: str) -> str:
    return DEVICE if engine == "triton" else "cpu"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu without bfloat16":
        monkeypatch.setattr(operands, "multiplies_bfloat16", lambda device: False)
    return str(request.param)


def vectors(kind: str, k: int, d: int, generator: torch.Generator) -> Tensor:
    """Vectors that hurt, float32 except for "half"."""
    v = torch.randn(k, d, generator=generator)
    if kind == "offset":
        return v * 1e-2 + 1e4
    if kind == "huge":
        return v * (1e15 / d**0.5)
    if kind == "tiny":
        return v * (1e-15 / d**0.5)
    if kind == "mixed":
        return v * 10.0 ** torch.empty(k, 1).uniform_(-15, 15, generator=generator)
    if kind == "clusters":
        return v * 1e-3 + torch.randint(2, (k, 1), generator=generator) * 1e4
    if kind == "sphere":
        return v / v.norm(dim=1, keepdim=True)
    if kind == "equal":
        return torch.ones(k, d)
    if kind == "near duplicates":
        return 1 + v * 1e-6
    return (v.clamp(-2.5, 2.5) * 2.5e4).half() if kind == "half" else v


@st.composite
def problems(draw: st.DrawFn, most: int = 60) -> Problem:
    n, m, d = draw(st.integers(1, 9)), draw(st.integers(0, most)), draw(st.integers(1, 70))
    kind = draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    both = vectors(kind, n + m, d, generator)
    if kind == "normal":
        both = both.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    queries, samples = both[:n], both[n:]
    if draw(st.booleans()) and m > 1:
        samples[m // 2 :] = samples[: m - m // 2].clone()  # duplicates
    if draw(st.booleans()) and m:
        samples[-1] = queries[0]  # distance 0
    if draw(st.booleans()) and m:
        samples[0, 0] = draw(st.sampled_from([torch.inf, -torch.inf, torch.nan]))
    cuts = sorted(draw(st.lists(st.integers(0, m), max_size=3)))
    return queries, samples, [b - a for a, b in zip([0, *cuts], [*cuts, m], strict=True)]


def distances(queries: Tensor, samples: Tensor) -> Tensor:
    """All squared distances in float64 [n, m], inf to samples that are not finite."""
    sq = (queries.double()[:, None] - samples.double()[None]).square().sum(2)
    return torch.where(samples.isfinite().all(1), sq, torch.inf)


def least(sq: Tensor, admissible: Tensor) -> Tensor:
    sq = torch.where(admissible, sq, torch.inf)
    return sq.amin(1) if sq.shape[1] else sq.new_full((len(sq),), torch.inf)


def check(search: NearestSearch, sq: Tensor, radius: float, searching: Tensor | None = None) -> None:
    """What search holds against all squared distances, with the contract's tolerances."""
    finite = sq.isfinite().all(0)
    surely = finite & (sq >= (radius * (1 + TIGHT)) ** 2).all(0) if radius else finite
    perhaps = finite & (sq >= (radius * (1 - TIGHT)) ** 2).all(0) if radius else finite
    assert int(surely.sum()) <= int(search.accepted) <= int(perhaps.sum())
    assert int(search.accepted + search.rejected) == sq.shape[1]
    index, got = search.index.cpu(), search.sq_distance.cpu().double()
    seeking = torch.ones(len(sq), dtype=torch.bool) if searching is None else searching
    assert (index[~seeking] == -1).all()
    assert got[index == -1].isinf().all()
    assert not (seeking & (index == -1) & least(sq, surely).isfinite()).any()
    has_index = index >= 0
    assert perhaps[index[has_index]].all()
    chosen = sq[has_index].gather(1, index[has_index, None])[:, 0]
    assert (chosen <= least(sq[has_index], surely) * (1 + 2 * TIGHT)).all()  # squares: twice the distances' tolerance
    torch.testing.assert_close(got[has_index], chosen, rtol=1e-5, atol=0)


def run(engine: str, problem: Problem, radius: float = 0.0, odd_ones_only: bool = False) -> None:
    queries, samples, sizes = problem
    searching = torch.arange(len(queries)) % 2 == 1 if odd_ones_only else None
    device = device_of(engine)
    search = search_by(engine, queries.to(device), None if searching is None else searching.to(device), radius)
    for chunk in samples.to(device).split(sizes):
        search.update(chunk)
    check(search, distances(queries, samples), radius, searching)


@given(problems())
@settings(max_examples=150, deadline=None)
def test_the_nearest_sample_is_found_whatever_the_chunks(problem: Problem) -> None:
    run("cpu", problem)


@given(problems(), st.floats(0.0, 6.0), st.booleans())
@settings(max_examples=100, deadline=None)
def test_rejected_samples_are_never_chosen(problem: Problem, radius: float, odd_ones_only: bool) -> None:
    run("cpu", problem, radius, odd_ones_only)


@given(problems(most=150), st.sampled_from([0.0, 0.0, 1.0, 5.0]), st.booleans())
@settings(max_examples=400 if DEVICE == "cuda" else 12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_kernels_keep_the_same_contract(problem: Problem, radius: float, odd_ones_only: bool) -> None:
    run("triton", problem, radius, odd_ones_only)


@pytest.mark.parametrize("kind", KINDS)
def test_many_of_each_kind(engine: str, kind: str) -> None:
    interpreted = engine == "triton" and DEVICE == "cpu"
    n, m, d = (12, 130, 40) if interpreted else (300, 3000, 130)
    both = vectors(kind, n + m, d, torch.Generator().manual_seed(1))
    run(engine, (both[:n], both[n:], [m // 3, 0, m - m // 3]))


@pytest.mark.parametrize("share", [0.5, 1.0, 1.5])
def test_samples_around_the_radius(engine: str, share: float) -> None:
    n, m, d = 12, 70, 40
    queries = vectors("sphere", n, d, torch.Generator().manual_seed(2))
    towards = vectors("sphere", m, d, torch.Generator().manual_seed(3))
    reach = 0.15 * torch.linspace(1 - 1e-3, 1 + 1e-3, m)[:, None]
    samples = queries[torch.arange(m) % n] + towards * reach
    run(engine, (queries, samples, [m]), 0.15 * share)


def test_a_sample_at_the_radius_itself_is_admissible(engine: str) -> None:
    device = device_of(engine)
    search = search_by(engine, torch.zeros(1, 3, device=device), radius=2.0)
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
    queries, samples = torch.randn(3, 5), torch.randn(70, 5)
    run(engine, (queries, samples, [70]), 100.0)


def test_ties_go_to_the_lowest_index(engine: str) -> None:
    queries, one = torch.randn(5, 17, device=device_of(engine)), torch.randn(1, 17, device=device_of(engine))
    search = search_by(engine, queries)
    for size in (3, 0, 300):
        search.update(one.expand(size, -1))
    assert search.index.tolist() == [0] * 5
    search = search_by(engine, queries)
    search.update(torch.cat([one + 3, one, one + 3, one.expand(200, -1)]))
    assert search.index.tolist() == [1] * 5


def test_no_queries_and_no_samples(engine: str) -> None:
    device = device_of(engine)
    search = search_by(engine, torch.zeros(0, 4, device=device), radius=1.0)
    search.update(torch.randn(5, 4, device=device))
    assert (search.index.tolist(), int(search.accepted)) == ([], 5)
    search = search_by(engine, torch.zeros(2, 4, device=device))
    search.update(torch.zeros(0, 4, device=device))
    assert search.index.tolist() == [-1, -1]


def test_float64_is_searched_on_the_cpu() -> None:
    queries, samples = torch.randn(4, 50).double(), torch.randn(60, 50).double()
    run("cpu", (queries, samples, [60]))


def test_the_function_is_the_packages_too() -> None:
    queries, pool = torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]])
    result = imletriton.nearest(queries, pool)
    assert result.index.tolist() == [1, 0]
    assert result.sq_distance.tolist() == [1, 1]
    assert imletriton.nearest is nearest


def test_rows_need_not_be_contiguous(engine: str) -> None:
    queries, samples = torch.randn(4, 20)[:, ::2], torch.randn(90, 30)[:, :10]
    run(engine, (queries, samples, [90]))
    run(engine, (queries, torch.randn(10, 90).T, [90]))


def test_the_same_input_gives_the_same_result(engine: str) -> None:
    queries, samples = (torch.randn(k, 33, device=device_of(engine)) for k in (5, 70))
    first, second = (search_by(engine, queries, radius=6.0) for _ in range(2))
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
    monkeypatch.setattr(operands, "multiplies_bfloat16", lambda device: True)
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
        held.append(sum(t.numel() * t.element_size() for t in operands.SCRATCH.held.values()))
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
    with pytest.raises(ValueError, match="reject_radius"):
        NearestSearch(queries, reject_radius=-1.0)
