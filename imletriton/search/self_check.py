"""Does this device search correctly? Small, difficult problems are searched on it and compared with float64.

Each check is a function of a device. It returns what is wrong, in words, or "" if the device agrees with brute force in
float64 on the CPU. On a GPU the checks compile and run the search's kernels, in each of their tiles.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imletriton.search.nearest import NearestSearch
from imletriton.search.within import within

N, M, D = 37, 501, 71  # queries, samples and dimensions of most problems: no multiples of a tile's sizes
MANY = 1040  # so many queries get other tiles; with more than 256 dimensions, others again
SQ_TOLERANCE = 2e-6  # of the least squared distance, which the chosen sample's may exceed
ERROR = 1e-5  # relative, of what is returned

Check = Callable[[torch.device], str]


@dataclass(frozen=True)
class Problem:
    """Queries [n, d] and samples [m, d] on the CPU, and what is asked for; see NearestSearch."""

    queries: Tensor
    samples: Tensor
    k: int | None = None
    reject_radius: float | None = None


def drawn(n: int = N, d: int = D) -> tuple[Tensor, Tensor]:
    """n queries and M samples, float32, normally distributed and always the same."""
    both = torch.randn(n + M, d, generator=torch.Generator().manual_seed(n * d))
    return both[:n], both[n:]


def changed(change: Callable[[Tensor], Tensor]) -> Problem:
    """What `drawn` gives, changed on both sides."""
    queries, samples = drawn()
    return Problem(change(queries), change(samples))


def duplicates() -> Problem:
    """Every sample occurs three times, and some are queries: the lowest index is right."""
    queries, samples = drawn()
    return Problem(queries, torch.cat([samples[: M // 3], queries[:5], samples[: M // 3], samples[: M // 3]]))


def nearly_equal(n: int = N, d: int = D) -> Problem:
    """Samples too similar for rounded products to tell them apart, as those of an untrained generator are."""
    queries, samples = drawn(n, d)
    return Problem(queries, 1 + 1e-3 * samples)


def norms_of_all_sizes(v: Tensor) -> Tensor:
    """Norms from 10^-15 to 10^36."""
    return v * torch.logspace(-15, 35, len(v))[torch.arange(len(v)) * 7 % len(v), None]


def not_finite() -> Problem:
    """The nearest sample of each of the first two queries has one value that is not finite."""
    queries, samples = drawn()
    samples[:2] = queries[:2]
    samples[0, 3], samples[1, 5] = torch.nan, torch.inf
    return Problem(queries, samples)


def rejection() -> Problem:
    """A radius that rejects half of the samples, halfway between two distances."""
    queries, samples = drawn()
    least = sq_distances(queries, samples).amin(0).sort().values
    return Problem(queries, samples, reject_radius=float(least[M // 2 : M // 2 + 2].mean().sqrt()))


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "one neighbour": lambda: Problem(*drawn()),
    "five neighbours": lambda: Problem(*drawn(), k=5),
    "duplicates": duplicates,
    "vectors far from the origin": lambda: changed(lambda v: 1e4 + 1e-2 * v),
    "samples nearly equal": nearly_equal,
    "many queries": lambda: Problem(*drawn(MANY)),
    "many queries, samples nearly equal": lambda: nearly_equal(MANY, 300),
    "norms of all sizes": lambda: changed(norms_of_all_sizes),
    "float16": lambda: changed(lambda v: (v.clamp(-2.5, 2.5) * 2.5e4).half()),  # the range filled to its end
    "bfloat16": lambda: changed(Tensor.bfloat16),
    "samples that are not finite": not_finite,
    "a rejection radius": rejection,
}


def sq_distances(queries: Tensor, samples: Tensor) -> Tensor:
    """All squared distances by differences in float64, [n, m]; inf to samples that are not finite."""
    differences = (queries.double() - sample for sample in samples.double())
    sq = torch.stack([difference.square().sum(1) for difference in differences], 1)
    return torch.where(samples.isfinite().all(1), sq, torch.inf)


def check_nearest(problem: Problem, device: torch.device) -> str:
    """Search a problem in two chunks. Returns what is wrong."""
    queries, samples, k = problem.queries, problem.samples, problem.k or 1
    search = NearestSearch(queries.to(device), reject_radius=problem.reject_radius, k=problem.k)
    for chunk in samples.to(device).tensor_split([len(samples) // 3]):
        search.update(chunk)
    index, found = (v.cpu().view(len(queries), k) for v in (search.index, search.sq_distance.double()))
    sq = sq_distances(queries, samples)
    admissible = sq.isfinite().all(0) & (sq.amin(0) >= (problem.reject_radius or 0.0) ** 2)
    sq = torch.where(admissible, sq, torch.inf)
    expected, order = (v[:, :k] for v in sq.sort(dim=1, stable=True))
    if (accepted := int(search.accepted)) != int(admissible.sum()):
        return f"{accepted} samples are admissible instead of {int(admissible.sum())}"
    if missing := int((index < 0).sum()):
        return f"{missing} of {index.numel()} neighbours are missing"
    chosen = sq.gather(1, index)
    if (wrong := chosen > expected * (1 + SQ_TOLERANCE)).any():
        excess = (chosen / expected - 1)[wrong].max()
        return f"{int(wrong.sum())} of {wrong.numel()} samples are not the nearest, by up to {excess:.0e}"
    error = torch.where(chosen > 0, (found - chosen).abs() / chosen, found)
    error[found == chosen.float()] = 0  # also where float32 can hold neither
    if not (error <= ERROR).all():
        return f"squared distances are off by up to {error.max():.0e}"
    if k == 1 and (higher := (chosen == expected) & (index != order)).any():
        return f"{int(higher.sum())} of {index.numel()} ties do not go to the lowest index"
    return ""


def check_within(device: torch.device) -> str:
    """Count and list the pairs within radii of the samples, each between the distances of two queries."""
    queries, samples = drawn()
    sq = sq_distances(queries, samples)
    nearest = sq.sort(dim=0).values
    radius = nearest[2:4].mean(0).sqrt()
    result = within(queries.to(device), samples.to(device), radius.to(device))
    inside = sq <= radius.square()
    if (wrong := int((result.count.cpu() != inside.sum(1)).sum())) > 0:
        return f"{wrong} of {N} counts of pairs are wrong"
    return "" if torch.equal(result.pairs.cpu(), inside.nonzero()) else "the pairs are not those within the radii"


def of_problem(make: Callable[[], Problem]) -> Check:
    """The check that searches a problem."""
    return lambda device: check_nearest(make(), device)


CHECKS: dict[str, Check] = {name: of_problem(make) for name, make in PROBLEMS.items()}
CHECKS["pairs within radii"] = check_within


def run_check(check: Check, device: torch.device) -> str:
    """Run one check on a device and return what is wrong; an exception counts as that, too."""
    try:
        return check(device)
    except Exception as error:  # the driver and the compiler each raise their own
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else 'failed'}"
