"""Prepared vectors, searched by Triton's kernels: what several searches share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DEVICE, KERNEL_EXAMPLES, KINDS, Problem, problems, searched_by, vectors
from torch import Tensor

pytest.importorskip("triton")

from benchmarks.counts import OperatorCounts
from imletriton.search import NearestSearch, Prepared, nearest
from imletriton.selection.rejection import aligning_radius


def both_ways(queries: Tensor, samples: Tensor, radius: float, k: int | None) -> tuple[NearestSearch, NearestSearch]:
    """A search of prepared vectors, and the same of plain ones."""
    reference = Prepared(queries)
    prepared, plain = NearestSearch(reference, None, radius, k), NearestSearch(queries, None, radius, k)
    prepared.update(Prepared(samples, reference))
    plain.update(samples)
    return prepared, plain


@given(problems(most=100), st.sampled_from([0.0, 1.0, 5.0]), st.sampled_from([None, 3]))
@settings(max_examples=KERNEL_EXAMPLES // 2)
def test_prepared_vectors_give_the_same_bits(problem: Problem, radius: float, k: int | None) -> None:
    with searched_by("triton"):
        prepared, plain = both_ways(problem[0].to(DEVICE), problem[1].to(DEVICE), radius, k)
        assert torch.equal(prepared.exact_sq_distance, plain.exact_sq_distance)
        assert torch.equal(prepared.index, plain.index)
        assert torch.equal(prepared.accepted, plain.accepted)


def test_a_round_takes_few_searches() -> None:
    """The radius of `epsilon = "auto"` tries six radii, but searches its parts of the pool once."""
    points, samples = torch.randn(3, 40, device=DEVICE), torch.randn(24, 40, device=DEVICE)
    with searched_by("triton"), OperatorCounts() as counts:
        reference = Prepared(points)
        pool = Prepared(samples, reference)
        radius = aligning_radius(reference, pool)
        search = NearestSearch(reference, reject_radius=radius)
        search.update(pool)
    assert radius > 0
    assert counts.launches["imletriton::scan_kernel"] <= 1 + 7 + 2  # the gap, the parts, rejection and selection
    assert counts.launches["imletriton::rounding_kernel"] <= 2 + 7  # both sides as a whole, and the parts in order


def test_the_radius_is_the_same_however_it_is_searched() -> None:
    points, samples = torch.randn(4, 20), torch.randn(40, 20)
    samples[3] = torch.nan
    reference = Prepared(points)
    expected = aligning_radius(reference, Prepared(samples, reference))
    with searched_by("triton"):
        reference = Prepared(points.to(DEVICE))
        assert aligning_radius(reference, Prepared(samples.to(DEVICE), reference)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_can_be_queries_about_the_points_centre(kind: str) -> None:
    both = vectors(kind, 16, 30, torch.Generator().manual_seed(5)).to(DEVICE)
    points, samples = both[:4], both[4:]
    with searched_by("triton"):
        reference = Prepared(points)
        found = nearest(Prepared(samples, reference), reference)
        plain = nearest(samples, points)
    assert torch.equal(found.index, plain.index)
    assert torch.equal(found.sq_distance, plain.sq_distance)


def test_vectors_prepared_for_others_are_refused() -> None:
    points, samples = Prepared(torch.randn(4, 20)), torch.randn(30, 20)
    prepared = Prepared(samples, points)
    for queries, pool in (
        (points, Prepared(samples)),
        (prepared, Prepared(samples, points)),
        (prepared, Prepared(points.vectors)),
    ):
        with pytest.raises(ValueError, match="neither the queries nor the samples"):
            nearest(queries, pool)
    with pytest.raises(ValueError, match="samples are prepared, but the queries are not"):
        nearest(points.vectors, prepared)
    with pytest.raises(ValueError, match="the samples have to be that reference"):
        nearest(prepared, points.vectors)
    assert torch.equal(nearest(points, samples).index, nearest(points, prepared).index)


def test_no_prepared_queries_find_nothing() -> None:
    with searched_by("triton"):
        nobody = Prepared(torch.zeros(0, 20, device=DEVICE))
        assert nearest(nobody, Prepared(torch.randn(5, 20, device=DEVICE), nobody)).index.tolist() == []


def test_on_a_cpu_nothing_is_kept() -> None:
    points, samples = torch.randn(6, 4), torch.randn(9, 4)
    reference = Prepared(points)
    assert reference.operand is None
    assert len(reference) == 6
    assert torch.equal(nearest(reference, Prepared(samples, reference)).index, nearest(points, samples).index)
