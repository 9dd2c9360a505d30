import numpy as np
import pytest
import torch

from benchmarks import measure
from imletriton.generator import latent_codes
from imletriton.search import Nearest, nearest
from imletriton.selection import misalignment as module
from imletriton.selection.misalignment import LATENTS, PRIOR, Misalignment, ks_distance, nearest_of


def codes(count: int, seed: int, dim: int = 2) -> torch.Tensor:
    return latent_codes(0, count, dim, seed=seed)


def misalignment(n: int = 20, pool_size: int = 200, d: int = 3) -> Misalignment:
    return Misalignment(codes(n, 5, d), pool_size, codes(PRIOR + LATENTS, 1))


@pytest.mark.parametrize(("k", "m"), [(1, 1), (7, 40), (300, 200)])
def test_the_distance_of_distributions_is_scipys(k: int, m: int) -> None:
    from scipy.stats import ks_2samp  # which loads for a second

    rng = np.random.default_rng(k)
    a, b = rng.integers(0, 50, k).astype(np.float32), rng.integers(5, 70, m).astype(np.float32)  # with ties
    expected = ks_2samp(a, b).statistic
    assert ks_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, abs=1e-6)


def test_theory_says_how_near_the_nearest_of_many_samples_is() -> None:
    """Against drawing pools of 30 over and over."""
    rng = np.random.default_rng(0)
    ranks = rng.integers(0, 50, (20_000, 30)).min(1)
    drawn = np.bincount(ranks, minlength=50) / 20_000
    assert np.abs(nearest_of(50, 30).numpy() - drawn).max() < 0.02
    assert torch.allclose(nearest_of(50, 1), torch.full((50,), 1 / 50, dtype=torch.float64))


def test_latents_selected_like_the_prior_are_aligned_and_bands_are_not() -> None:
    aligned, banded = misalignment(), misalignment()
    latents = codes(1500, 2)
    index, distance = torch.arange(1500) % 20, torch.ones(1500)
    aligned.note_selected(index, latents, distance)
    banded.note_selected(index, latents * (latents[:, :1] > 0), distance)
    assert aligned.metrics()["misaligned_latents"] < 0.1
    assert banded.metrics()["misaligned_latents"] > 0.4


def test_selecting_the_nearest_of_a_pool_is_as_misaligned_as_theory_says() -> None:
    tracker = misalignment(pool_size=250)
    pool = codes(250, 3, 3)
    tracker.note_pool(pool)
    search = nearest(tracker.points, pool)
    tracker.note_selected(torch.arange(20), codes(20, 4), search.sq_distance.sqrt())
    metrics = tracker.metrics()
    assert metrics["misaligned_distances"] == pytest.approx(metrics["misaligned_theory"], abs=0.1)
    assert metrics["misaligned_theory"] > 0.8
    assert metrics["random"] == pytest.approx(float(torch.cdist(pool, tracker.points).amin(1).mean()), rel=1e-4)
    at_random = torch.cdist(tracker.points, pool).diagonal()
    tracker.note_selected(torch.arange(20), codes(20, 4), at_random)
    assert tracker.metrics()["misaligned_distances"] < 0.35


def test_many_data_points_are_represented_by_some_of_them() -> None:
    few, many = misalignment(n=2000), misalignment(n=20_000)
    for tracker in (few, many):
        tracker.note_pool(codes(200, 3, 3))
        distance = nearest(tracker.points, codes(200, 3, 3)).sq_distance.sqrt()
        tracker.note_selected(torch.arange(len(distance)), codes(len(distance), 4), distance)
    found, expected = many.metrics(), few.metrics()
    assert found["misaligned_distances"] == pytest.approx(expected["misaligned_distances"], abs=0.01)
    assert found["misaligned_theory"] == pytest.approx(expected["misaligned_theory"], abs=0.01)
    assert measure.extra_memory(many.metrics, torch.device("cpu")) < 80 * 2**20  # 20,000 x 256 distances take more


def test_the_newest_latents_are_kept_and_samples_that_are_not_finite_left_out() -> None:
    tracker = misalignment()
    for start in range(0, 3000, 20):
        index = torch.arange(20)
        tracker.note_selected(index, torch.arange(start, start + 20.0)[:, None].expand(20, 2), torch.ones(20))
    latents, owner = tracker.latents, tracker.owner
    assert sorted(latents[:, 0].tolist()) == list(range(3000 - LATENTS, 3000))
    assert torch.equal(owner, latents[:, 0].long() % 20)
    tracker.note_pool(torch.full((200, 3), torch.nan))
    assert list(tracker.metrics()) == ["misaligned_latents"]


def test_the_searches_are_of_one_size_from_the_first_round_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps code for each size of a product that it has seen."""
    tracker, sizes = misalignment(), set()

    def noted(queries: torch.Tensor, pool: torch.Tensor) -> Nearest:
        sizes.add((queries.shape, pool.shape))
        return nearest(queries, pool)

    monkeypatch.setattr(module, "nearest", noted)
    latents = codes(LATENTS, 2)
    for start, stop in ((0, 1), (1, 20), (20, 700), (700, LATENTS)):
        tracker.note_selected(torch.arange(start, stop) % 20, latents[start:stop], torch.ones(stop - start))
        gaps, usual = (torch.cdist(tracker.prior[:PRIOR], x[:stop]).amin(1) for x in (latents, tracker.prior[PRIOR:]))
        assert tracker.metrics()["misaligned_latents"] == pytest.approx(ks_distance(gaps, usual), abs=1e-2)
    assert len(sizes) == 2  # this one, and that of samples and data points
