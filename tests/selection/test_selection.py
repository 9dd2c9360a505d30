import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import measure
from imletriton.data import load_points
from imletriton.errors import InputError
from imletriton.recipe import Recipe
from imletriton.search import NearestSearch, Prepared
from imletriton.selection import STRATEGIES, Adaptive, AdaptiveRejection, Rejection, Vanilla
from imletriton.selection.misalignment import ks_distance
from imletriton.selection.rejection import aligning_radius
from imletriton.system.device import multiplies_bfloat16
from imletriton.training.build import build
from imletriton.training.state import restore, state_of
from imletriton.training.trainer import StepDone


def prepared(points: Tensor, samples: Tensor) -> tuple[Prepared, Prepared]:
    reference = Prepared(points)
    return reference, Prepared(samples, reference)


def test_vanilla_gives_every_point_a_new_neighbour_at_regular_epochs() -> None:
    strategy = Vanilla(4, Vanilla.Parameters(refresh=3))
    due = [bool(strategy.due(epoch, torch.rand(4)).all()) for epoch in range(7)]
    assert due == [True, False, False, True, False, False, True]
    assert strategy.reject_radius(*prepared(torch.rand(4, 2), torch.rand(9, 2))) == 0


@pytest.mark.parametrize(("share", "refresh"), [(1.0, 1), (1.0, 5), (0.5, 5), (0.3, 7), (0.1, 10), (0.034, 30)])
def test_a_share_spreads_the_same_refreshes_over_more_rounds(share: float, refresh: int) -> None:
    n, rounds = 23, math.ceil(1 / share)
    settings = Rejection.Parameters(share=share, refresh=refresh)
    due = torch.stack([Rejection(n, settings).due(epoch, torch.rand(n)) for epoch in range(3 * refresh)])
    assert torch.equal(due.nonzero()[:, 1].bincount(), torch.full((n,), 3))  # each data point once in each period
    assert torch.equal(due[:refresh], due[refresh : 2 * refresh])
    sizes = due[:refresh].sum(1)
    assert sizes.max() == math.ceil(n / rounds)
    assert (sizes > 0).sum() == min(n, rounds)
    assert settings.pool_size(230) == math.ceil(230 / rounds)


@pytest.mark.parametrize("strategy", ["vanilla", "rejection"])
def test_with_a_share_a_run_begins_with_all_points_and_a_small_pool_and_resumes_to_the_bit(
    recipe_file: Path, strategy: str
) -> None:
    changes = {"selection.strategy": strategy, "selection.share": 0.4, "train.batch_size": 4, "selection.pool": "9n"}
    recipe = Recipe.load(recipe_file, changes | {"train.iterations": 20})
    points = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    whole = build(recipe, points, torch.device("cpu"))
    assert whole.pool.size == recipe.selection.pool_size(8) == 24
    refreshed = []
    for event in whole.loop():
        if event == StepDone(2 * len(refreshed) + 1):  # the first step of an epoch
            refreshed.append(round(8 * whole.metrics["refreshed"]) if whole.rounds > sum(map(bool, refreshed)) else 0)
        if event == StepDone(7):
            saved = copy.deepcopy((whole.ema.state_dict(), *state_of(whole)))
    assert refreshed == [8, 3, 2, 0, 3, 3, 2, 0, 3, 3]  # of 4 epochs, parts have the first, second and third
    resumed = build(recipe, points, torch.device("cpu"))
    restore(resumed, *saved)
    list(resumed.loop())
    (tensors, state), (expected, told) = state_of(resumed), state_of(whole)
    torch.testing.assert_close(tensors, expected, rtol=0, atol=0)
    assert state == told


def test_a_share_that_needs_several_rounds_in_an_epoch_is_named(recipe_file: Path) -> None:
    with pytest.raises(InputError, match=r"selection.share: 0.1 takes 10 rounds, .* selection.refresh at least 10\.$"):
        Recipe.load(recipe_file, {"selection.share": 0.1, "selection.refresh": 9})
    with pytest.raises(InputError, match=r"selection.share = 0"):
        Recipe.load(recipe_file, {"selection.share": 0})


def test_rejection_is_vanilla_with_a_radius() -> None:
    strategy = Rejection(4, Rejection.Parameters(epsilon=0.3, refresh=2))
    assert strategy.reject_radius(*prepared(torch.rand(4, 2), torch.rand(9, 2))) == 0.3
    assert strategy.due(0, torch.rand(4)).all()


def test_adaptive_waits_for_progress_and_staleness_then_tightens() -> None:
    strategy = Adaptive(3, Adaptive.Parameters(delta=0.5, staleness=2, forced_refresh=5, max_pool_age=100))
    start = torch.tensor([1.0, 1.0, 1.0])
    everyone = torch.ones(3, dtype=torch.bool)  # none has a neighbour yet
    assert strategy.needs_pool(everyone, 0)
    strategy.pool_drawn(0)
    strategy.latents_assigned(everyone, 0, start)
    assert strategy.tau.tolist() == [1, 1, 1]

    halfway = torch.tensor([0.5, 0.6, 0.1])
    assert not strategy.due(1, halfway).any()  # too fresh
    due = strategy.due(2, halfway)
    assert due.tolist() == [True, False, True]  # delta * tau reached
    assert strategy.needs_pool(due, 2)  # they have used this pool
    strategy.pool_drawn(2)
    strategy.latents_assigned(due, 2, torch.tensor([0.4, 0.6, 0.3]))
    assert strategy.tau.tolist() == pytest.approx([0.4, 1.0, 0.3])

    late = strategy.due(5, torch.full((3,), 9.0))
    assert late.tolist() == [False, True, False]  # forced
    assert not strategy.needs_pool(late, 5)  # it has not used the second pool
    assert strategy.needs_pool(late, 102)  # too old
    assert strategy.metrics()["tau_max"] == 1.0


def selected(points: torch.Tensor, samples: torch.Tensor, radius: float) -> torch.Tensor:
    search = NearestSearch(points, reject_radius=radius)
    search.update(samples)
    return search.sq_distance.sqrt()


def test_an_automatic_radius_selects_most_like_random_samples_lie() -> None:
    """Against trying many radii."""
    generator = torch.Generator().manual_seed(0)
    points, samples = (torch.randn(k, 3, generator=generator) for k in (30, 600))
    gap = torch.cdist(samples, points).amin(1)
    tried = {float(r): ks_distance(selected(points, samples, float(r)), gap) for r in gap[::4]}
    radius = aligning_radius(*prepared(points, samples))
    assert ks_distance(selected(points, samples, radius), gap) <= min(tried.values()) + 0.02
    assert min(tried.values()) < 0.7 * ks_distance(selected(points, samples, 0.0), gap)
    assert 0.1 < (gap < radius).float().mean() <= 0.5
    broken = torch.cat([samples, torch.full((50, 3), torch.nan), torch.full((50, 3), -torch.inf)])
    broken[620:, 1] = 0
    assert aligning_radius(*prepared(points, broken)) == radius


@pytest.mark.parametrize(
    "samples", [torch.zeros(50, 2), torch.full((50, 2), torch.nan), torch.tensor([[9.0, 9.0]]), torch.eye(2)]
)
def test_where_nothing_can_be_gained_the_automatic_radius_is_small(samples: torch.Tensor) -> None:
    """An untrained generator's samples, samples that are not finite, a pool of one, samples on the data."""
    points = torch.eye(2)
    radius = aligning_radius(*prepared(points, samples))
    assert 0 <= radius <= torch.cdist(samples, points).amin(1).nan_to_num(0).median()


@pytest.mark.parametrize("strategy", [Rejection, AdaptiveRejection])
def test_an_automatic_radius_is_found_once_for_each_pool_and_kept_in_the_state(strategy: type[Rejection]) -> None:
    points, samples = torch.randn(10, 3), torch.randn(200, 3)
    first, second = (strategy(10, strategy.Parameters(epsilon="auto")) for _ in range(2))
    radius = first.reject_radius(*prepared(points, samples))
    assert radius == aligning_radius(*prepared(points, samples)) > 0
    second.load_state_dict(first.state_dict())
    assert second.reject_radius(*prepared(points, 2 * samples)) == radius  # of the same pool
    second.pool_drawn(1)
    assert (
        second.reject_radius(*prepared(points, 2 * samples))
        == aligning_radius(*prepared(points, 2 * samples))
        != radius
    )
    assert second.metrics()["epsilon"] != radius


@pytest.mark.parametrize("epsilon", [-0.1, "big", True])
def test_a_wrong_radius_is_named(recipe_file: Path, epsilon: object) -> None:
    with pytest.raises(InputError, match=r"selection.epsilon.* a distance from 0 to 1000000 nor \"auto\""):
        Recipe.load(recipe_file, {"selection.strategy": "rejection", "selection.epsilon": epsilon})


def test_both_at_once_is_adaptive_with_a_radius() -> None:
    strategy = AdaptiveRejection(4, AdaptiveRejection.Parameters(epsilon=0.3, delta=0.9))
    assert strategy.reject_radius(*prepared(torch.rand(4, 2), torch.rand(9, 2))) == 0.3
    assert isinstance(strategy, Adaptive)
    assert STRATEGIES.find("adaptive-rejection") is AdaptiveRejection


def test_vanilla_is_the_others_special_case_to_the_bit(recipe_file: Path) -> None:
    """Through two rounds."""
    adaptive = {"delta": 0.0, "staleness": 4, "forced_refresh": 4}
    weights = []
    for keys in (
        {"strategy": "vanilla", "refresh": 4},
        {"strategy": "rejection", "refresh": 4, "epsilon": 0.0},
        {"strategy": "adaptive", "max_pool_age": 99, **adaptive},
        {"strategy": "adaptive-rejection", "epsilon": 0.0, **adaptive},
    ):
        chosen = {f"selection.{key}": value for key, value in keys.items()}
        recipe = Recipe.load(recipe_file, {"train.iterations": 20} | chosen)
        trainer = build(recipe, load_points("faces", 16), torch.device("cpu"))
        list(trainer.loop())
        assert trainer.rounds == 2
        weights.append(trainer.ema.state_dict())
    for others in weights[1:]:
        torch.testing.assert_close(others, weights[0], rtol=0, atol=0)


RECIPES = Path(__file__).parents[2] / "recipes"


@given(
    st.sampled_from(["vanilla", "adaptive", "rejection", "adaptive-rejection"]),
    st.fixed_dictionaries({"refresh": st.integers(1, 4), "epsilon": st.sampled_from([0.0, 0.1, 0.4, 9.0, "auto"])}),
    st.fixed_dictionaries(
        {
            "delta": st.sampled_from([0.0, 0.5, 0.98]),
            "staleness": st.integers(1, 4),
            "forced_refresh": st.integers(1, 9),
            "max_pool_age": st.integers(1, 9),
        }
    ),
    st.integers(1, 9),
    st.integers(1, 8),
    st.integers(0, 12),
    st.integers(0, 99),
)
def test_every_round_is_the_papers_read_point_by_point(
    name: str, radius: dict[str, Any], pace: dict[str, Any], n: int, times: int, restart: int, seed: int
) -> None:
    """Algorithm 1 of both papers and Algorithm 3 of Adaptive IMLE in plain loops, through a restart."""
    parameters = STRATEGIES.find(name).Parameters.model_fields
    chosen = {k: v for k, v in (radius | pace).items() if k in parameters}
    overrides = {"selection.strategy": name, "selection.pool": n * times, "selection.noise": 0.0, "train.seed": seed}
    overrides |= {"generator.width": 8, "train.batch_size": 4, "train.learning_rate": 0.02}
    recipe = Recipe.load(RECIPES / "toy2d.toml", overrides | {f"selection.{k}": v for k, v in chosen.items()})
    points = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    trainer = build(recipe, points, torch.device("cpu"))
    tau, since, used, drawn, relaxed = [math.inf] * n, [-1] * n, [True] * n, 0, 0
    for epoch in range(12):
        if epoch == restart:
            saved = trainer.ema.state_dict(), *state_of(trainer)
            trainer = build(recipe, points, torch.device("cpu"))
            restore(trainer, *saved)
        known, before, draws = trainer.distances.tolist(), trainer.assigned.clone(), trainer.draws
        list(trainer.start_epoch())

        if "adaptive" in name:
            due = [
                since[i] < 0
                or epoch - since[i] >= pace["forced_refresh"]
                or (
                    known[i] <= np.float32(pace["delta"]) * np.float32(tau[i]) and epoch - since[i] >= pace["staleness"]
                )
                for i in range(n)
            ]
            redraw = any(due) and (
                any(d and u for d, u in zip(due, used, strict=True)) or epoch - drawn >= pace["max_pool_age"]
            )
        else:
            due = [epoch % radius["refresh"] == 0] * n
            redraw = any(due)
        assert trainer.draws - draws == redraw
        if redraw:
            drawn, used = epoch, [False] * n
        if any(due):
            epsilon = float(trainer.strategy.epsilon) if "rejection" in name else 0.0
            distance = torch.cdist(points.double(), trainer.pool.features.double()).numpy()
            admissible = distance.min(0) >= epsilon * (1 - 1e-5)
            surely = distance.min(0) >= epsilon * (1 + 1e-5)
            if not admissible.any():
                admissible[:] = surely[:] = True
                relaxed += 1
        for i in range(n):
            if not due[i]:
                assert torch.equal(trainer.assigned[i], before[i])
                continue
            j = int((trainer.pool.latents(0, trainer.pool.size) == trainer.assigned[i]).all(1).nonzero()[0, 0])
            assert admissible[j]
            assert (distance[i, j] <= distance[i, surely] * (1 + 1e-5)).all()
            tau[i], since[i], used[i] = float(trainer.distances[i]), epoch, True
        if "adaptive" in name:
            assert trainer.strategy.tau.tolist() == tau
        assert trainer.relaxed == relaxed
        while trainer.epoch == epoch:
            trainer.train_step()


def radius_memory() -> float:
    """The memory that finding a radius takes, over that of the samples: the least of three times."""
    points, samples = torch.randn(50, 800), torch.randn(40_000, 800)
    cpu = torch.device("cpu")
    return min(
        measure.extra_memory(lambda: aligning_radius(*prepared(points, samples)), cpu) / samples.nbytes
        for _ in range(3)  # libraries take memory at their first call
    )


def test_a_radius_is_found_with_little_memory(tmp_path: Path) -> None:
    """In a process of its own: where `fit` has run, freed memory is kept."""
    assert processes.exit_code(processes.start(tmp_path / "taken", radius_memory)) == 0
    taken = float((tmp_path / "taken").read_text())
    # Where the CPU does not multiply bfloat16, the rounded samples take as much, and for a moment twice as much.
    assert taken < (1.5 if multiplies_bfloat16(torch.device("cpu")) else 2.5)
