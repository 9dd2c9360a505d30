import pytest

pytest.importorskip("triton")

from benchmarks.counts import count_variants


def test_searches_of_any_size_build_few_variants_of_each_kernel() -> None:
    """Triton builds a kernel anew for each property of an argument that it knows."""
    counts = count_variants()
    assert len(counts) == 8
    assert max(counts.values()) <= 20, counts
