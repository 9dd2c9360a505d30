"""Each kernel against its plain-PyTorch reference, on the GPU or, without one, under Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from imletriton.kernels import decide, launch, refine, rounding, scan, start
from imletriton.kernels import within as within_kernels
from imletriton.kernels.launch import generation
from imletriton.search import NearestSearch, Prepared, nearest, within
from imletriton.search.gpu import GPUSearch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ONE = torch.ones((), device=DEVICE)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def search_of(queries: Tensor, reject_radius: float = 0.0) -> GPUSearch:
    return GPUSearch(Prepared.of(queries), None, reject_radius, 1)


def sq_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(2)


@pytest.mark.parametrize(
    ("n", "d", "size", "dtype"),
    [
        *((1, 1, size, torch.float32) for size in (1.0, 1e-6, 1e4)),
        *((7, 63, size, torch.float32) for size in (1.0, 1e-6, 1e4)),
        *((7, 63, size, dtype) for size in (1.0, 1e4) for dtype in (torch.float16, torch.bfloat16)),
        (1, 1, 1e-6, torch.float16),
        (1, 1, 1e-6, torch.bfloat16),
        (2100, 3, 1e4, torch.float32),
    ],
)
def test_a_search_starts_amid_the_queries(n: int, d: int, size: float, dtype: torch.dtype) -> None:
    queries = (randn(n, 2 * d + 1) * size + size).to(dtype)[:, 1::2][:, :d]
    centre, scale, sq_distance, index, accepted = start.start(queries, 3)
    expected = start.start_reference(queries)
    torch.testing.assert_close(centre, expected[0])
    assert torch.equal(scale, expected[1])
    assert (sq_distance == torch.inf).all()
    assert (index == -1).all()
    assert sq_distance.shape == index.shape == (n, 3)
    assert accepted == 0
    longest = ((queries.double() - centre).norm(dim=1).amax() if n > 1 else centre.double().norm()) * scale
    assert 2.0**6.9 < longest < 2.0**8


def test_a_search_starts_where_there_is_no_length_or_no_query() -> None:
    for queries in (torch.zeros(3, 4, device=DEVICE), torch.zeros(0, 4, device=DEVICE)):
        centre, scale, *_ = start.start(queries, 1)
        assert torch.equal(centre, torch.zeros(4, device=DEVICE))
        assert scale == 1


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # by NumPy, which the interpreter computes with
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_query_that_is_not_finite_is_marked_and_spoils_no_other(value: float) -> None:
    queries = randn(5, 40)
    queries[3, 39] = value
    centre, scale, sq_distance, *_ = start.start(queries, 1)
    assert centre.isfinite().all()
    assert 1 <= scale <= 2.0**8
    assert torch.equal(sq_distance[:, 0].isnan(), torch.arange(5, device=DEVICE) == 3)
    search, samples = search_of(queries), randn(90, 40, seed=1)
    search.update(Prepared.of(samples), 0)
    others = torch.arange(5, device=DEVICE) != 3
    assert search.sq_distance[3].isnan()
    assert search.index[3] == -1
    assert torch.equal(search.index[others, 0], sq_distances(queries, samples)[others].argmin(1))


@pytest.mark.parametrize(
    ("d", "dtype"),
    [(1, torch.float16), (63, torch.bfloat16), (1, torch.float32), (63, torch.float32), (130, torch.float32)],
)
def test_rounding_is_its_reference(d: int, dtype: torch.dtype) -> None:
    vectors = (randn(7, 2 * d) * 3).to(dtype)[:, :d]  # rows at a stride
    vectors[2] *= 2e3  # longer than float16 holds
    vectors[3, 0] = torch.nan
    centre, accepted = vectors[:2].float().mean(0), torch.tensor(5, device=DEVICE)
    half, bound, sq_norm = rounding.round_vectors(vectors, centre, 8 * ONE, accepted)
    expected = rounding.round_vectors_reference(vectors, centre, 8 * ONE)
    assert accepted == 5 + 6
    assert torch.equal(half, expected[0])
    assert torch.equal(half[3], torch.zeros_like(half[3]))
    assert len(bound) == len(sq_norm) == rounding.PADDING
    assert (bound[7:] == rounding.MASKED).all()
    keep = torch.arange(7, device=DEVICE) != 3
    torch.testing.assert_close(bound[:7], expected[1], rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(sq_norm[:7][keep], expected[2][keep])


def rounded(
    x: Tensor, y: Tensor, centre: Tensor, scale: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor], int, int]:
    """Rows and columns rounded, and the tile's rows and columns."""
    (hx, bx, nx), (hy, by, ny) = (rounding.round_vectors(v, centre, scale, None) for v in (x, y))
    tile = launch.scan_tile(DEVICE, len(x), hx.shape[1])
    return (hx, bx, nx), (hy, by, ny), tile.block_m, tile.block_n


def by_pairs(sq: Tensor, group: int) -> Tensor:
    """Squared distances [M, N] to the nearer column of each pair, [M, groups, pairs]; inf beyond the last column."""
    padded = torch.nn.functional.pad(sq, (0, -sq.shape[1] % group), value=torch.inf)
    return padded.view(len(sq), -1, group // scan.PAIR, scan.PAIR).amin(3)


@pytest.mark.parametrize(("rows", "columns", "d"), [(1, 1, 1), (70, 130, 100), (9, 64, 64)])
def test_scan_is_its_reference_and_a_bound(rows: int, columns: int, d: int) -> None:
    x, y = randn(rows, d), randn(columns, d, seed=1)
    (hx, bx, _), (hy, by, _), block_m, group = rounded(x, y, x.mean(0), 8 * ONE)
    by[columns // 2] = rounding.MASKED
    first, second, doubts, crowded = scan.scan(hx, bx, hy, by, block_m, group)
    expected = scan.scan_reference(hx, bx[:rows], hy, by[:columns], group)
    member = first.view(torch.int32) & scan.MEMBER_BITS
    torch.testing.assert_close(first, expected[0], rtol=1e-4, atol=0.1)
    torch.testing.assert_close(second, expected[1], rtol=1e-4, atol=0.1)
    assert (doubts == 0).all()
    assert (crowded == 0).all()
    assert len(doubts) == len(crowded) - 1 == len(first) * -(-rows // block_m)
    sq = 64 * sq_distances(x, y)
    sq[:, columns // 2] = rounding.MASKED
    pairs = by_pairs(sq, group).clamp(max=rounding.MASKED)
    two = pairs.topk(2, largest=False).values
    assert (two[..., 0] >= first.T).all()
    assert (two[..., 1] * (1 + 1e-6) >= second.T).all()
    assert (two[..., 0] - 2e-3 * (bx[:rows, None] + by.amin()) <= first.T).all()  # not just any bound: a tight one
    chosen = pairs.gather(2, member.T[..., None].long())[..., 0]
    assert ((chosen < two[..., 0] * 1.01) | (two[..., 0] > 1e38)).all()


def test_scan_refuses_bounds_that_end_within_a_group() -> None:
    x = randn(3, 20)
    (hx, bx, _), _, block_m, group = rounded(x, x, x.mean(0), ONE)
    with pytest.raises(ValueError, match="within a group"):
        scan.scan(hx, bx, hx, bx[:3], block_m, group)


def listed(tiles: list[int], number: int) -> Tensor:
    """A list of tiles that are crowded, of so many tiles in all."""
    return torch.tensor([len(tiles), *tiles, *[0] * (number - len(tiles))], dtype=torch.int32, device=DEVICE)


def clusters(k: int, d: int) -> Tensor:
    return randn(k, d, seed=k) * 1e-2 + (torch.arange(k, device=DEVICE) % 2)[:, None]


def far_from_the_origin(k: int, d: int) -> Tensor:
    return randn(k, d, seed=k) * 1e-2 + 1e4


def nearly_equal(k: int, d: int) -> Tensor:
    return randn(k, d, seed=k) * 1e-6 + 1


def equal(k: int, d: int) -> Tensor:
    return torch.ones(k, d, device=DEVICE)


def of_all_lengths(k: int, d: int) -> Tensor:
    return randn(k, d, seed=k) * torch.logspace(-3, 2, k, device=DEVICE)[:, None]


@pytest.mark.parametrize(
    ("vectors", "d", "kind"),
    [
        *((vectors, 129, "few") for vectors in (clusters, far_from_the_origin, nearly_equal, equal, of_all_lengths)),
        *((vectors, 1, "few") for vectors in (far_from_the_origin, of_all_lengths)),
        *((vectors, 40, "many") for vectors in (clusters, nearly_equal)),
    ],
)
def test_refine_is_its_reference_a_bound_and_tight(
    vectors: Callable[[int, int], Tensor], d: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On vectors that the scan cannot tell apart. The bounds agree up to the rounding that the module states."""
    monkeypatch.setitem(launch.SCAN[generation(DEVICE)], "few", launch.SCAN[generation(DEVICE)][kind])
    tile = launch.SCAN[generation(DEVICE)]["few"]
    x, y = vectors(tile.block_m + 7, d), vectors(tile.block_n + 9, d)
    y[3] = torch.nan
    y[4] *= 1e6  # too long for float16
    centre = x.mean(0)
    scale = 2.0 ** (7 - (x - centre).norm(dim=1).amax().clamp(min=1e-9).log2().ceil())
    (hx, bx, nx), (hy, by, ny), block_m, group = rounded(x, y, centre, scale)
    by[5] = rounding.MASKED
    sq = torch.where(by[: len(y)] < 1e38, sq_distances(x, y), torch.inf)
    first, second, doubts, _ = scan.scan(hx, bx, hy, by, block_m, group)
    scanned = first.clone(), second.clone()
    crowded = listed([3, 0], len(doubts))  # the first group's first tile, and the second group's second
    arguments = x, y, centre, scale
    expected = refine.refine_reference(*arguments, bx[: len(x)], by[: len(y)], group)
    refine.refine(*arguments, nx, bx, ny, by, crowded, first, second, block_m, group)

    replaced = torch.zeros(2, len(x), dtype=torch.bool, device=DEVICE)
    replaced[0, :block_m] = replaced[1, block_m:] = True
    assert torch.equal(first[~replaced], scanned[0][~replaced])
    assert torch.equal(second[~replaced], scanned[1][~replaced])

    pairs = by_pairs(sq * scale.double() ** 2, group).transpose(0, 1)
    member = first.view(torch.int32) & scan.MEMBER_BITS
    chosen = [pairs.gather(2, k[..., None].long())[..., 0] for k in (member, expected[2])]
    two = pairs.topk(2, largest=False).values.clamp(max=rounding.MASKED)
    longest = torch.where(by < 1e38, torch.where(ny < 2**30, ny, 0), 0)[: 2 * group].view(-1, group).amax(1)
    e, slack = refine.relative_error(hx.shape[1]), hx.shape[1] * 2.0**-26
    rounds = e * (nx[: len(x)] + longest[:, None]).double() + slack
    bounds = [(first.view(torch.int32) & ~scan.MEMBER_BITS).view(torch.float32).double(), second.double()]
    for bound, reference, least in zip(bounds, expected, two.unbind(2), strict=False):
        assert ((bound - reference).abs() <= rounds + 2.0**-14 * reference)[replaced].all()
        for candidate in (bound, reference):
            assert (candidate <= least)[replaced].all()
            far = least > 2**29  # about vectors that are too long for float16
            assert ((candidate >= least * (1 - 2.0**-14) - 2 * rounds) | far)[replaced].all()
    for sq_distance in chosen:
        near = sq_distance.clamp(max=rounding.MASKED) <= two[..., 0] * (1 + 2.0**-14) + 2 * rounds
        assert (near | (two[..., 0] > 2**29))[replaced].all()


def test_refine_does_nothing_where_no_tile_is_crowded() -> None:
    x, y = randn(12, 40), randn(90, 40, seed=1)
    (hx, bx, nx), (hy, by, ny), block_m, group = rounded(x, y, x.mean(0), 16 * ONE)
    first, second, _, crowded = scan.scan(hx, bx, hy, by, block_m, group)
    before = first.clone(), second.clone()
    refine.refine(x, y, x.mean(0), 16 * ONE, nx, bx, ny, by, crowded, first, second, block_m, group)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


class Decision:
    """Bounds, and memory for a decision, of 6 rows and a group and a half of columns, some of them equal."""

    def __init__(self, share: float, top: int) -> None:
        tile = launch.SCAN[generation(DEVICE)]["few"]
        self.block_m, self.group = tile.block_m, tile.block_n
        self.x, self.y = randn(6, 30), randn(self.group + 20, 30, seed=1)
        self.y[self.group + 3] = self.y[7] = self.x[2]
        self.bound_y = torch.full((2 * self.group,), rounding.MASKED, device=DEVICE)
        self.bound_y[: len(self.y)] = 0
        self.bound_y[9] = rounding.MASKED
        self.sq = torch.where(self.bound_y[: len(self.y)] < 1, sq_distances(self.x, self.y), rounding.MASKED)
        two, members = by_pairs(self.sq, self.group).clamp(max=rounding.MASKED).topk(2, largest=False)
        bounds = torch.where(two < 1e38, two * (share * 0.999), two).float().permute(2, 1, 0).contiguous()
        packed = (bounds[0].view(torch.int32) & ~scan.MEMBER_BITS) | members[..., 0].T.int()
        self.first, self.second = packed.view(torch.float32), bounds[1].contiguous()
        self.best = torch.full((6, top), torch.inf, dtype=torch.float64, device=DEVICE)
        self.index = torch.full((6, top), -1, device=DEVICE)
        self.still_open = torch.full((6,), 3, dtype=torch.int8, device=DEVICE)
        self.doubts = torch.zeros(2, dtype=torch.int32, device=DEVICE)
        self.crowded = listed([], 2)

    def decide(self, at_first: bool, any_will_do: bool = False) -> None:
        decide.decide(
            self.x, self.y, self.bound_y, ONE, self.first, self.second, self.best, self.index, self.still_open,
            self.doubts, self.crowded, self.block_m, self.group, 1000, at_first, any_will_do,
        )  # fmt: skip


@pytest.mark.parametrize(("share", "top"), [(0.0, 1), (1.0, 1), (1.0, 2), (0.0, 5), (1.0, 8)])
def test_decide_measures_until_nothing_nearer_is_left(share: float, top: int) -> None:
    """Whatever valid bounds it gets: useless ones, or exact ones."""
    d = Decision(share, top)
    expected = decide.decide_reference(d.x, d.y, d.bound_y[: len(d.y)], d.best, d.index, 1000)
    d.decide(at_first=True)
    found = (d.index >= 0).sum(1)
    assert ((found >= min(top, 2)) & (found <= top)).all()
    d.decide(at_first=False)
    best, order = d.best.sort(1)
    index = d.index.gather(1, order)
    torch.testing.assert_close(best, expected[0], rtol=1e-6, atol=0)
    others = torch.arange(6, device=DEVICE) != 2
    assert torch.equal(index[others], expected[1][others])
    assert torch.equal(index[2].sort().values, expected[1][2].sort().values)  # two samples at the same place
    assert 1007 in index[2]  # of two equal samples the lower index is never left out


def test_the_first_decision_lists_the_tiles_with_many_rows_in_doubt() -> None:
    d = Decision(share=0.0, top=1)
    d.second[0] = rounding.MASKED
    d.second[1, 1:3] = rounding.MASKED  # leaves four rows in doubt about the second group: not enough
    d.decide(at_first=True)
    assert d.doubts.tolist() == [0, 4]
    assert d.crowded[0] == 0
    assert d.still_open.bool()[[0, 3, 4, 5]].all()
    d = Decision(share=0.0, top=1)
    d.second[0] = rounding.MASKED
    d.second[1, 1] = rounding.MASKED
    d.decide(at_first=True)
    assert d.doubts.tolist() == [0, 5]
    assert d.crowded[:2].tolist() == [1, 1]
    d = Decision(share=0.0, top=1)
    d.decide(at_first=True)
    assert d.doubts.tolist() == [6, 6]
    assert sorted(d.crowded.tolist()) == [0, 1, 2]


def test_a_row_that_is_settled_is_left_alone() -> None:
    d = Decision(share=1.0, top=1)
    d.second[:] = d.first[1] = rounding.MASKED
    d.decide(at_first=True)
    assert (d.still_open == 0).all()
    d.first[:] = d.second[:] = 0.0
    index, best = d.index.clone(), d.best.clone()
    d.decide(at_first=False)
    assert torch.equal(d.index, index)
    assert torch.equal(d.best, best)


@pytest.mark.parametrize("at_first", [True, False])
def test_decide_leaves_rows_alone_that_have_any_index(at_first: bool) -> None:
    d = Decision(share=0.0, top=1)
    d.best.fill_(50.0)
    d.index[3] = 7
    d.decide(at_first, any_will_do=True)
    assert (d.index[3], d.best[3]) == (7, 50)
    taken = d.index[:, 0] >= 1000
    expected = d.sq[taken].gather(1, d.index[taken] - 1000)
    torch.testing.assert_close(d.best[taken], expected, rtol=1e-6, atol=0)
    assert (d.best[taken] < 50).all()
    assert (d.best[~taken] == 50).all()
    if not at_first:  # else a pair of columns of each row was measured, that of the first group
        assert torch.equal(taken, (d.sq.amin(1) < 50) & (d.index[:, 0] != 7))


def test_the_operators_follow_pytorchs_rules() -> None:
    """Schemas, mutation, fake tensors, dynamic shapes: what torch.compile and CUDA graphs rely on."""
    x, y, centre = randn(2, 20), randn(9, 20, seed=1), torch.zeros(20, device=DEVICE)
    (hx, bx, nx), (hy, by, ny), block_m, group = rounded(x, y, centre, ONE)
    first, second, doubts, crowded = scan.scan(hx, bx, hy, by, block_m, group)
    best = torch.full((2, 1), torch.inf, dtype=torch.float64, device=DEVICE)
    index, still_open = torch.full((2, 1), -1, device=DEVICE), torch.zeros(2, dtype=torch.int8, device=DEVICE)
    accepted, count = (torch.zeros(size, dtype=torch.int64, device=DEVICE) for size in ((), (2,)))
    radii = torch.ones(9, dtype=torch.float64, device=DEVICE)

    def check(launcher: Callable[..., object], *arguments: object) -> None:
        torch.library.opcheck(launcher.custom_op, arguments)  # type: ignore[attr-defined]

    check(start.start, x, 2)
    check(rounding.round_vectors, y, centre, ONE, accepted)
    check(scan.scan, hx, bx, hy, by, block_m, group)
    lists = still_open, doubts, crowded
    check(decide.decide, x, y, by, ONE, first, second, best, index, *lists, block_m, group, 0, True, False)
    check(refine.refine, x, y, centre, ONE, nx, bx, ny, by, crowded, first, second, block_m, group)
    check(within_kernels.add_within, x, y, centre, ONE, nx, bx, ny, by, radii, count, None, 9, 0)


def test_a_search_compiles_as_one_graph() -> None:
    x, y = randn(3, 20), randn(12, 20, seed=1)

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        search = search_of(x, 3.0)
        search.update(Prepared.of(y), 0)
        return search.index, search.accepted

    compiled = torch.compile(run, backend="inductor" if DEVICE.type == "cuda" else "aot_eager", fullgraph=True)
    for ours, eager in zip(compiled(x, y), run(x, y), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("radius", [None, 10.0])
@pytest.mark.parametrize("k", [None, 5])
def test_a_search_with_its_updates_replays_as_a_cuda_graph(radius: float | None, k: int | None) -> None:
    x, y = randn(300, 100), randn(3000, 100, seed=1)

    def run() -> tuple[Tensor, Tensor]:
        search = NearestSearch(x, torch.arange(300, device=DEVICE) % 3 > 0, radius, k)
        search.update(y[:2000])
        search.update(y[2000:])
        return search.index, search.accepted

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # fails if anything waits for the GPU
        captured = run()
    y.copy_(randn(3000, 100, seed=2))
    graph.replay()
    for ours, eager in zip(captured, run(), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.gpu
def test_a_search_waits_for_nothing_on_the_gpu() -> None:
    x, y = randn(300, 100), randn(3000, 100, seed=1)
    nearest(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for radius in (None, 10.0):
            search = NearestSearch(x, torch.ones(300, dtype=torch.bool, device=DEVICE), radius)
            search.update(y)
            _ = search.sq_distance, search.index, search.accepted
        _ = nearest(x, y, 3), within(x, y, 12.0).count
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(389, 10000, 800), (1, 100000, 3), (5000, 5000, 33), (64, 2000, 100_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_shapes_are_exact_on_the_gpu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, m, d = shape
    x, y = (torch.randn(k, d, device=DEVICE).to(dtype) for k in (n, m))
    search = search_of(x)
    for first in range(0, m, 3000):
        search.update(Prepared.of(y[first : first + 3000]), first)
    least = torch.full((n,), torch.inf, dtype=torch.float64, device=DEVICE)
    for part in y.split(max(1, 2**26 // d)):
        least = torch.minimum(least, torch.cdist(x.double(), part.double()).square().amin(1))
    torch.testing.assert_close(search.sq_distance, least, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_memory_does_not_grow_with_the_pool_on_the_gpu() -> None:
    queries, peaks = randn(400, 800), []
    for chunks in (1, 8):
        search = search_of(queries)
        torch.cuda.reset_peak_memory_stats()
        for k in range(chunks):
            search.update(Prepared.of(torch.randn(100_000, 800, device=DEVICE)), k * 100_000)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0] * 1.05
