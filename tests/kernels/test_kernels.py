"""Each kernel against its plain-PyTorch reference, on the GPU or, without one, under Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from imletriton.kernels import decide, refine, rounding, scan
from imletriton.kernels.launch import REFINE, SCAN, generation
from imletriton.kernels.search import TritonSearch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ONE = torch.ones((), device=DEVICE)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def sq_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.double()[:, None] - y.double()[None]).square().sum(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 63, 130])
def test_rounding_is_its_reference(d: int, dtype: torch.dtype) -> None:
    vectors = (randn(7, 2 * d) * 3).to(dtype)[:, :d]  # rows at a stride
    vectors[2] *= 2e3  # longer than float16 holds
    vectors[3, 0] = torch.nan
    centre = vectors[:2].float().mean(0)
    half, bound, sq_norm = rounding.round_vectors(vectors, centre, 8 * ONE)
    expected = rounding.round_vectors_reference(vectors, centre, 8 * ONE)
    assert torch.equal(half, expected[0])
    assert torch.equal(half[3], torch.zeros_like(half[3]))
    keep = torch.arange(7, device=DEVICE) != 3
    torch.testing.assert_close(bound, expected[1], rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(sq_norm[keep], expected[2][keep])


@pytest.mark.parametrize(("rows", "columns", "d"), [(1, 1, 1), (70, 130, 100), (9, 64, 64)])
def test_scan_is_its_reference_and_a_bound(rows: int, columns: int, d: int) -> None:
    x, y = randn(rows, d), randn(columns, d, seed=1)
    centre = x.mean(0)
    (hx, bx, _), (hy, by, _) = (rounding.round_vectors(v, centre, 8 * ONE) for v in (x, y))
    by[columns // 2] = rounding.MASKED
    group = SCAN[generation(DEVICE)]["few"].block_n
    first, second = scan.scan(hx, bx, hy, by, group)
    expected = scan.scan_reference(hx, bx, hy, by, group)
    member = first.view(torch.int32) & scan.MEMBER_BITS
    torch.testing.assert_close(first, expected[0], rtol=1e-4, atol=0.1)
    torch.testing.assert_close(second, expected[1], rtol=1e-4, atol=0.1)
    sq = 64 * sq_distances(x, y)
    sq[:, columns // 2] = rounding.MASKED
    sq = torch.nn.functional.pad(sq, (0, -columns % group), value=rounding.MASKED).view(rows, -1, group)
    two = sq.topk(2, largest=False).values
    assert (two[..., 0] >= first.T).all()
    assert (two[..., 1] * (1 + 1e-6) >= second.T).all()
    assert (two[..., 0] - 2e-3 * (bx[:, None] + by.amin()) <= first.T).all()  # not just any bound: a tight one
    chosen = sq.gather(2, member.T[..., None].long())[..., 0]
    assert ((chosen < two[..., 0] * 1.01) | (two[..., 0] > 1e38)).all()


def test_refine_tightens_what_rounding_left_in_doubt() -> None:
    group = SCAN[generation(DEVICE)]["few"].block_n
    x, y = (randn(k, 40, seed=k) * 1e-2 + (torch.arange(k, device=DEVICE) % 2)[:, None] for k in (12, group + 9))
    centre = x.mean(0)
    (hx, bx, nx), (hy, by, ny) = (rounding.round_vectors(v, centre, 16 * ONE) for v in (x, y))
    by[5] = rounding.MASKED
    first, second = scan.scan(hx, bx, hy, by, group)
    sq = sq_distances(x, y)
    sq[:, 5] = torch.inf
    best = sq.amin(1) * 1.5
    before = second.clone()
    refine.refine(x, y, centre, 16 * ONE, nx, ny, by, best, first, second, group)
    two = torch.nn.functional.pad(256 * sq, (0, -len(y) % group), value=torch.inf).view(len(x), -1, group)
    two = two.topk(2, largest=False).values
    assert (before[0] == 0).all()  # the fast product could not tell the members of a cluster apart
    bound = (first.view(torch.int32) & ~scan.MEMBER_BITS).view(torch.float32)
    assert (two[..., 0] >= bound.T).all()
    assert (two[..., 1] >= second.T).all()
    assert (second.T[:, 0] > 0.2 * two[:, 0, 1]).all()
    untouched = second.clone()
    refine.refine(x, y, centre, 16 * ONE, nx, ny, by, torch.zeros_like(best), first, second, group)
    assert torch.equal(second, untouched)  # no row in doubt: nothing to do


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


@pytest.mark.parametrize("vectors", [clusters, far_from_the_origin, nearly_equal, equal, of_all_lengths])
@pytest.mark.parametrize("d", [1, 40, 129])
@pytest.mark.parametrize("group", [64, 128])
def test_refine_is_its_reference_a_bound_and_tight(vectors: Callable[[int, int], Tensor], d: int, group: int) -> None:
    """On vectors that the scan cannot tell apart. The bounds agree up to the rounding that the module states."""
    block_m, block_k = REFINE[generation(DEVICE)].block_m, REFINE[generation(DEVICE)].block_k
    x, y = vectors(2 * block_m + 7, d), vectors(group + 9, d)
    y[3] = torch.nan
    y[4] *= 1e6  # too long for float16
    centre = x.mean(0)
    scale = 2.0 ** (7 - (x - centre).norm(dim=1).amax().clamp(min=1e-9).log2().ceil())
    (hx, bx, nx), (hy, by, ny) = (rounding.round_vectors(v, centre, scale) for v in (x, y))
    by[5] = rounding.MASKED
    sq = torch.where(by < 1e38, sq_distances(x, y), torch.inf)
    best = sq.amin(1) * 1.5 + 1e-20
    best[block_m + refine.FEW_DOUBTS : 2 * block_m] = -1  # so few doubts in the second tile that it is left alone
    first, second = scan.scan(hx, bx, hy, by, group)
    scanned = first.clone(), second.clone()
    expected = refine.refine_reference(x, y, centre, scale, by, best, first, second, group)
    replaced = expected[3]
    refine.refine(x, y, centre, scale, nx, ny, by, best, first, second, group)

    assert replaced[:, :block_m].any()
    assert not replaced[:, block_m : 2 * block_m].any()
    assert torch.equal(first[~replaced], scanned[0][~replaced])
    assert torch.equal(second[~replaced], scanned[1][~replaced])

    two = torch.nn.functional.pad(sq * scale.double() ** 2, (0, -len(y) % group), value=torch.inf)
    two = two.view(len(x), -1, group).transpose(0, 1)
    member = first.view(torch.int32) & scan.MEMBER_BITS
    chosen = [two.gather(2, k[..., None].long())[..., 0] for k in (member, expected[2])]
    two = two.topk(2, largest=False).values.clamp(max=rounding.MASKED)
    longest = torch.nn.functional.pad(torch.where(by < 1e38, ny, 0), (0, -len(y) % group)).view(-1, group).amax(1)
    rounds = refine.relative_error(d, block_k) * (nx + longest[:, None]).double()
    bounds = [(first.view(torch.int32) & ~scan.MEMBER_BITS).view(torch.float32).double(), second.double()]
    for bound, reference, least, packing in zip(bounds, expected[:2], two.unbind(2), (2.0**-15, 2.0**-23), strict=True):
        assert ((bound - reference).abs() <= rounds + packing * reference)[replaced].all()
        for candidate in (bound, reference):
            assert (candidate <= least)[replaced].all()
            assert (candidate >= least * (1 - packing) - 2 * rounds)[replaced].all()
    for sq_distance in chosen:
        assert (sq_distance.clamp(max=rounding.MASKED) <= two[..., 0] * (1 + 2.0**-14) + 2 * rounds)[replaced].all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_decide_measures_until_nothing_nearer_is_left(share: float) -> None:
    """Whatever valid bounds it gets: useless ones, or exact ones."""
    group = SCAN[generation(DEVICE)]["few"].block_n
    x, y = randn(6, 30), randn(group + 20, 30, seed=1)
    y[group + 3] = y[7] = x[2]
    bound_y = torch.zeros(len(y), device=DEVICE)
    bound_y[9] = rounding.MASKED
    sq = torch.where(bound_y < 1, sq_distances(x, y), rounding.MASKED)
    padded = torch.nn.functional.pad(sq, (0, -len(y) % group), value=rounding.MASKED).view(len(x), -1, group)
    two, members = padded.topk(2, largest=False)
    bounds = torch.where(two < 1e38, two * (share * 0.999), two).float().permute(2, 1, 0).contiguous()
    first = ((bounds[0].view(torch.int32) & ~scan.MEMBER_BITS) | members[..., 0].T.int()).view(torch.float32)
    best = torch.full((6,), torch.inf, dtype=torch.float64, device=DEVICE)
    index = torch.full((6,), -1, device=DEVICE)
    expected = decide.decide_reference(x, y, bound_y, best, index, 1000)
    decide.decide(x, y, bound_y, ONE, first, bounds[1].contiguous(), best, index, group, 1000, False, False)
    torch.testing.assert_close(best, expected[0], rtol=1e-6, atol=0)
    assert torch.equal(index, expected[1])
    assert index[2] == 1007  # of two equal samples the lower index


@pytest.mark.parametrize("first_only", [True, False])
def test_decide_leaves_rows_alone_that_have_any_index(first_only: bool) -> None:
    group = SCAN[generation(DEVICE)]["few"].block_n
    x, y = randn(6, 30), randn(group + 20, 30, seed=1)
    bound_y, bounds = torch.zeros(len(y), device=DEVICE), torch.zeros(2, 6, device=DEVICE)
    best, index = torch.full((6,), 50.0, dtype=torch.float64, device=DEVICE), torch.full((6,), -1, device=DEVICE)
    index[3] = 7
    decide.decide(x, y, bound_y, ONE, bounds, bounds.clone(), best, index, group, 1000, first_only, True)
    assert (index[3], best[3]) == (7, 50)
    sq = sq_distances(x, y)
    taken = index >= 1000
    torch.testing.assert_close(best[taken], sq[taken].gather(1, index[taken, None] - 1000)[:, 0], rtol=1e-6, atol=0)
    assert (best[taken] < 50).all()
    assert (best[~taken] == 50).all()
    if not first_only:  # else one column of each row was measured, here the first: the least bound is that of group 0
        assert torch.equal(taken, (sq.amin(1) < 50) & (index != 7))


def test_the_operators_follow_pytorchs_rules() -> None:
    """Schemas, mutation, fake tensors, dynamic shapes: what torch.compile and CUDA graphs rely on."""
    group = SCAN[generation(DEVICE)]["few"].block_n
    x, y, centre = randn(5, 20), randn(30, 20, seed=1), torch.zeros(20, device=DEVICE)
    (hx, bx, nx), (hy, by, ny) = (rounding.round_vectors(v, centre, ONE) for v in (x, y))
    first, second = scan.scan(hx, bx, hy, by, group)
    best = torch.full((5,), torch.inf, dtype=torch.float64, device=DEVICE)
    index = torch.full((5,), -1, device=DEVICE)
    torch.library.opcheck(rounding.round_vectors, (x, centre, ONE))
    torch.library.opcheck(scan.scan, (hx, bx, hy, by, group))
    torch.library.opcheck(refine.refine, (x, y, centre, ONE, nx, ny, by, best, first, second, group))
    torch.library.opcheck(decide.decide, (x, y, by, ONE, first, second, best, index, group, 0, False, False))


def test_a_search_compiles_as_one_graph() -> None:
    x, y = randn(5, 20), randn(90, 20, seed=1)

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        search = TritonSearch(x, None, 3.0)
        search.update(y, 0)
        return search.index, search.accepted

    compiled = torch.compile(run, backend="inductor" if DEVICE.type == "cuda" else "aot_eager", fullgraph=True)
    for ours, eager in zip(compiled(x, y), run(x, y), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.gpu
def test_a_search_replays_as_a_cuda_graph() -> None:
    x, y = randn(300, 100), randn(3000, 100, seed=1)

    def run() -> tuple[Tensor, Tensor]:
        search = TritonSearch(x, None, 10.0)
        search.update(y, 0)
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
@pytest.mark.parametrize("shape", [(389, 10000, 800), (1, 100000, 3), (5000, 5000, 33), (64, 2000, 100_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_shapes_are_exact_on_the_gpu(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, m, d = shape
    x, y = (torch.randn(k, d, device=DEVICE).to(dtype) for k in (n, m))
    search = TritonSearch(x, None, 0.0)
    for start in range(0, m, 3000):
        search.update(y[start : start + 3000], start)
    least = torch.full((n,), torch.inf, dtype=torch.float64, device=DEVICE)
    for part in y.split(max(1, 2**26 // d)):
        least = torch.minimum(least, torch.cdist(x.double(), part.double()).square().amin(1))
    torch.testing.assert_close(search.sq_distance, least, rtol=1e-6, atol=0)


@pytest.mark.gpu
def test_memory_does_not_grow_with_the_pool_on_the_gpu() -> None:
    queries, peaks = randn(400, 800), []
    for chunks in (1, 8):
        search = TritonSearch(queries, None, 0.0)
        torch.cuda.reset_peak_memory_stats()
        for k in range(chunks):
            search.update(torch.randn(100_000, 800, device=DEVICE), k * 100_000)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0] * 1.05
