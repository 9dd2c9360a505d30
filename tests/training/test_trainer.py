import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import measure
from benchmarks.counts import OperatorCounts
from imletriton.data import load_points
from imletriton.errors import Fault
from imletriton.recipe import Recipe
from imletriton.training import compiling
from imletriton.training.build import build
from imletriton.training.compiling import compile_networks, compiles
from imletriton.training.state import restore, state_of, unchanged
from imletriton.training.trainer import BAD_STEPS_LIMIT, Trainer

CPU = torch.device("cpu")


def trainer_of(recipe: Recipe, **train: object) -> Trainer:
    changed = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
    return build(changed, load_points(recipe.data.source, recipe.data.resolution), CPU)


def run(trainer: Trainer, steps: int) -> Trainer:
    end = trainer.step + steps
    for _ in trainer.loop():
        if trainer.step == end:
            return trainer
    raise AssertionError(f"the loop ended after step {trainer.step}")


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.generator.parameters()])


def test_every_data_point_is_pulled_in_every_epoch(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, batch_size=32)
    seen = []
    for step in range(trainer.steps_per_epoch):
        trainer.step = step
        seen.append(trainer.batch_index())
    assert [len(batch) for batch in seen] == [32] * 4
    assert set(torch.cat(seen).tolist()) == set(range(100))


def test_a_batch_larger_than_the_data_repeats_them(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, batch_size=250)
    assert trainer.steps_per_epoch == 1
    assert set(trainer.batch_index().bincount().tolist()) == {2, 3}
    run(trainer, 2)


def test_each_point_takes_its_nearest_sample_of_the_pool(recipe: Recipe) -> None:
    """Against a search by the loss itself, sample by sample."""
    trainer = trainer_of(recipe, precision="float32")
    trainer.noise = 0.0
    list(trainer.start_epoch())
    with torch.no_grad():
        samples = trainer.generator(trainer.pool.latents(0, trainer.pool.size))
        loss = torch.stack([trainer.distance.loss(samples, x.expand_as(samples)) for x in trainer.points])
    features = torch.cdist(trainer.features.double(), trainer.pool.features.double())
    assert torch.equal(trainer.assigned, trainer.pool.latents_at(features.argmin(1)))
    torch.testing.assert_close(trainer.distances, loss[torch.arange(100), features.argmin(1)], rtol=1e-3, atol=1e-5)


def test_training_brings_samples_closer(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, learning_rate=1e-2)
    run(trainer, 4)
    first = trainer.take_loss()
    run(trainer, 52)
    trainer.take_loss()
    run(trainer, 4)
    assert trainer.take_loss() < 0.5 * first


def test_nothing_that_is_kept_between_steps_holds_a_graph(recipe: Recipe) -> None:
    """A graph through what outlives a step grows with every step, and is never freed."""
    trainer = run(trainer_of(recipe), 6)
    kept = [*trainer.ema.parameters(), *trainer.ema.buffers(), *trainer.strategy.buffers(), *trainer.pool.features]
    kept += [value for value in vars(trainer).values() if isinstance(value, Tensor)]
    assert not any(tensor.requires_grad for tensor in kept)


def test_the_seed_fixes_the_result(recipe: Recipe) -> None:
    one, same, other = (weights(run(trainer_of(recipe, seed=seed), 6)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_step_without_finite_gradients_changes_no_weight(recipe: Recipe) -> None:
    trainer = run(trainer_of(recipe), 3)
    before, moments = weights(trainer), trainer.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    good = trainer.assigned.clone()
    trainer.assigned.fill_(torch.nan)
    trainer.train_step()
    assert torch.equal(weights(trainer), before)
    assert torch.equal(trainer.optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert int(trainer.bad_steps) == int(trainer.bad_in_row) == 1
    assert trainer.distances.isfinite().all()
    trainer.assigned.copy_(good)
    trainer.train_step()
    assert not torch.equal(weights(trainer), before)
    assert (int(trainer.bad_steps), int(trainer.bad_in_row)) == (1, 0)
    assert trainer.take_loss() > 0


def test_many_bad_steps_in_a_row_end_training(recipe: Recipe) -> None:
    trainer = trainer_of(recipe)
    list(trainer.start_epoch())
    trainer.assigned.fill_(torch.nan)
    for _ in range(BAD_STEPS_LIMIT - 1):
        trainer.train_step()
    trainer.take_loss()
    trainer.train_step()
    with pytest.raises(Fault, match="steps in a row had no finite gradients"):
        trainer.take_loss()


def test_a_pool_that_is_rejected_whole_is_used_and_said(recipe: Recipe) -> None:
    selection = recipe.selection.model_copy(update={"strategy": "rejection", "epsilon": 1e6})
    trainer = trainer_of(recipe.model_copy(update={"selection": selection}))
    list(trainer.start_epoch())
    metrics = trainer.metrics
    assert (metrics["relaxed"], metrics["accepted"], metrics["rejected_share"]) == (1, 0, 1)
    assert metrics["rejected"] == trainer.pool.size
    assert metrics["refreshed"] == 1


def test_a_diverged_generator_is_a_fault(recipe: Recipe) -> None:
    trainer = trainer_of(recipe)
    with torch.no_grad():
        next(trainer.working.parameters()).fill_(torch.nan)
    with pytest.raises(Fault, match="No sample of the pool is finite"):
        list(trainer.start_epoch())


def test_warm_up_raises_the_learning_rate(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, warmup=4, learning_rate=1.0)
    list(trainer.start_epoch())
    rates = []
    for _ in range(6):
        trainer.train_step()
        rates.append(float(trainer.optimizer.param_groups[0]["lr"]))
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("strategy", ["vanilla", "adaptive", "rejection", "adaptive-rejection"])
def test_a_restored_trainer_goes_on_bit_for_bit(recipe: Recipe, strategy: str) -> None:
    from imletriton.selection import STRATEGIES

    parameters = STRATEGIES.find(strategy).Parameters().model_dump()
    selection = type(recipe.selection)(strategy=strategy, pool="2n", **parameters)
    recipe = recipe.model_copy(update={"selection": selection})
    whole, half = run(trainer_of(recipe), 30), run(trainer_of(recipe), 15)
    tensors, state = state_of(half)
    restored = run(trainer_of(recipe), 2)  # what it did before must not matter
    restore(restored, half.ema.state_dict(), tensors, state)
    run(restored, 15)
    for a, b in zip(state_of(whole)[0].items(), state_of(restored)[0].items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1]), a[0]
    assert state_of(whole)[1] == state_of(restored)[1]


def test_distances_are_measured_in_batches_of_few_sizes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN and cuDNN keep code for each size that they have seen, and any number of points may be due."""
    trainer, sizes = trainer_of(recipe, precision="float32"), set()
    list(trainer.start_epoch())
    forward = trainer.generator.forward

    def noted(z: Tensor) -> Tensor:
        sizes.add(len(z))
        return forward(z)

    monkeypatch.setattr(trainer.generator, "forward", noted)
    for count in range(1, 41):
        found = trainer.measure(torch.arange(count))
        torch.testing.assert_close(found, trainer.distances[:count], rtol=1e-4, atol=1e-6)
    assert sizes == {1, 2, 4, 8, 16}


def test_the_targets_of_many_pictures_take_no_more_memory_while_they_are_made(recipe_file: Path) -> None:
    size = {"data.resolution": 64, "generator.blocks": "4x1,64m4"}
    recipe, points = Recipe.load(recipe_file, size), torch.zeros(2000, 3, 64, 64, dtype=torch.uint8)
    build(recipe, points[:32], CPU)  # loads what is loaded once
    kept: list[Trainer] = []
    taken = measure.extra_memory(lambda: kept.append(build(recipe, points, CPU)), CPU)
    assert kept[0].targets is not None
    assert taken < 1.5 * sum(part.nbytes for part in kept[0].targets)


def test_distances_are_measured_from_targets_that_are_kept(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, embedded = trainer_of(recipe), []
    embed = trainer.distance.embed

    def noted(points: Tensor) -> tuple[Tensor, ...]:
        embedded.append(len(points))
        return embed(points)

    monkeypatch.setattr(trainer.distance, "embed", noted)
    kept = trainer.measure(torch.arange(16))
    assert embedded == [16]  # the samples
    monkeypatch.setattr(trainer, "targets", None)
    torch.testing.assert_close(trainer.measure(torch.arange(16)), kept, rtol=1e-4, atol=1e-6)
    assert embedded == [16, 16, 16]


class Addresses(TorchDispatchMode):
    """Where the tensors lie that are read or written while it is entered, but were not made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: set[int] = set()
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = self._storages((args, kwargs or {}))
        self.outside |= given - self._made
        self._made |= self._storages(result) - given
        return result

    @staticmethod
    def _storages(tree: Any) -> set[int]:
        leaves = torch.utils._pytree.tree_leaves(tree)
        return {leaf.untyped_storage().data_ptr() for leaf in leaves if isinstance(leaf, Tensor)} - {0}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_devices_part_of_a_step_works_on_tensors_that_stay_where_they_are(recipe: Recipe, precision: str) -> None:
    """Over steps, epochs, rounds and pools, and after going back: as a CUDA graph of it has to."""
    trainer, seen = trainer_of(recipe, precision=precision), []

    def advance() -> None:
        with Addresses() as addresses:
            trainer.step_on_device()
        seen.append(addresses.outside)

    trainer.advance = advance
    run(trainer, 20)  # two pools
    state = trainer.ema.state_dict(), *state_of(trainer)
    with unchanged(trainer):
        run(trainer, 2)
    restore(trainer, *state)
    run(trainer, 2)
    assert trainer.draws == 2
    assert len(seen) == 24
    assert all(addresses == seen[0] for addresses in seen)
    assert trainer.index.untyped_storage().data_ptr() in seen[0]


def test_a_step_and_a_chunk_never_wait_nor_convert_weights(recipe: Recipe) -> None:
    trainer = run(trainer_of(recipe, precision="bfloat16"), 3)
    assert trainer.copies.pairs
    rows = []
    for _ in range(8):  # over an epoch's end
        with OperatorCounts(trainer.weights) as counts:
            trainer.train_step()
        rows.append(counts.row())
    assert all(row == rows[0] for row in rows)
    assert (rows[0]["waits"], rows[0]["casts of weights"]) == (0, 0)
    assert all(torch.equal(copy, weight.bfloat16()) for weight, copy in trainer.copies.pairs)
    with OperatorCounts(trainer.weights) as counts, torch.no_grad(), trainer.autocast():
        trainer.pool.make_features(torch.randn(4, 8))
    assert (counts.row()["waits"], counts.weight_casts) == (0, 0)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("optimizer.exp_avg.mapping", "lacks a tensor of the optimizer's exp_avg"),
        ("optimizer.exp_avg_sq.decoder.gain", "lacks a tensor of the optimizer's exp_avg_sq"),
        ("optimizer.step.decoder.gain", "lacks a tensor of the optimizer's step"),
        ("optimizer.", "lacks a tensor of the optimizer's step"),
        ("generator.decoder.gain", "lacks generator.decoder.gain"),
        ("assigned", "lacks assigned"),
        ("strategy.tau", "lacks strategy.tau"),
        ("misalignment.owner", "lacks misalignment.owner"),
        ("pool.", "pool.features has the shape (0,), not (200, 64)"),
    ],
)
def test_a_state_that_lacks_a_tensor_is_refused(recipe: Recipe, lost: str, words: str) -> None:
    recipe = recipe.model_copy(update={"selection": type(recipe.selection)(strategy="adaptive", pool="2n")})
    trainer = run(trainer_of(recipe), 3)
    tensors, state = state_of(trainer)
    with pytest.raises(ValueError, match=re.escape(words)):
        restore(trainer, trainer.ema.state_dict(), {k: v for k, v in tensors.items() if not k.startswith(lost)}, state)


@pytest.mark.parametrize("name", ["assigned", "generator.decoder.gain", "optimizer.exp_avg.decoder.gain"])
def test_a_state_of_other_shapes_or_with_other_steps_is_refused(recipe: Recipe, name: str) -> None:
    trainer = run(trainer_of(recipe), 3)
    ema, (tensors, state) = trainer.ema.state_dict(), state_of(trainer)
    with pytest.raises(ValueError, match=r"size mismatch for [^\n]*[^.]$"):
        restore(trainer, ema, tensors | {name: torch.zeros(2, 3)}, state)
    with pytest.raises(ValueError, match="has not done the steps of its trainer"):
        restore(trainer, ema, tensors, state | {"step": 2})
    with pytest.raises(ValueError, match="lacks draws"):
        restore(trainer, ema, tensors, {k: v for k, v in state.items() if k != "draws"})
    with pytest.raises(ValueError, match="weights are NaN or infinite"):
        restore(trainer, {k: v + torch.inf for k, v in ema.items()}, tensors, state)


@pytest.mark.gpu
def test_training_runs_on_a_gpu(recipe: Recipe) -> None:
    points = load_points(recipe.data.source, recipe.data.resolution)
    trainer = run(build(recipe, points, torch.device("cuda")), 60)
    assert int(trainer.bad_steps) == 0
    assert trainer.take_loss() < 1


def test_a_chunk_that_is_too_large_is_halved(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(recipe)
    list(trainer.pool.draw(0))
    expected, forward = trainer.pool.features.clone(), trainer.working.forward

    def small(z: torch.Tensor) -> torch.Tensor:
        if len(z) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(z)

    monkeypatch.setattr(trainer.working, "forward", small)
    assert list(trainer.pool.draw(0)) == [*range(4, trainer.pool.size + 1, 4)]
    torch.testing.assert_close(trainer.pool.features, expected)
    assert trainer.pool.chunk == 4
    monkeypatch.setattr(trainer.working, "forward", lambda z: small(torch.empty(6)))
    with pytest.raises(torch.OutOfMemoryError):
        list(trainer.pool.draw(0))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled_training_is_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """As one graph each, with chunks all of one size; by a back end that takes no minutes."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options: real(f, backend=backend, fullgraph=True))
    eager, compiled = trainer_of(recipe), trainer_of(recipe, compile=True)
    assert not compiles(eager)
    assert compiles(compiled)
    for trainer in (eager, compiled):
        trainer.pool.chunk = 128  # of 200
    assert compile_networks(compiled) is None
    assert compiled.pool.fixed_chunks
    for trainer in (eager, compiled):
        run(trainer, 6)
    torch.testing.assert_close(compiled.pool.features, eager.pool.features, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-2, atol=1e-3)


def test_what_cannot_be_compiled_trains_on_without(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(f: object, options: dict[str, object]) -> object:
        def call(*arguments: object) -> None:
            raise RuntimeError("no compiler here\nat length")

        return call

    eager, trainer = trainer_of(recipe), trainer_of(recipe, compile=True)
    monkeypatch.setattr(torch, "compile", fails)
    assert compile_networks(trainer) == "no compiler here"
    assert torch.equal(weights(run(trainer, 3)), weights(run(eager, 3)))


class Recording:
    """Stands for `recorded` without a GPU: it runs the work as often, and its replay runs it again."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails, self.replays = fails, 0

    def __call__(self, work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        for _ in range(3):
            work()
        if self.fails:
            raise self.fails

        def replay() -> None:
            self.replays += 1
            work()

        return replay


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (None, None),
        (RuntimeError("operation not permitted when stream is capturing\nat length"), "operation not permitted when"),
        (torch.OutOfMemoryError("CUDA out of memory."), None),
    ],
)
@pytest.mark.parametrize("begun", [0, 7])
def test_recording_a_step_changes_nothing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, begun: int, fails: Exception | None, reason: str | None
) -> None:
    eager, trainer = (run(trainer_of(recipe), begun) if begun else trainer_of(recipe) for _ in range(2))
    recording = Recording(fails)
    monkeypatch.setattr(torch, "compile", lambda f, options: f)
    monkeypatch.setattr(compiling, "recorded", recording)
    monkeypatch.setattr(compiling, "uses_graphs", lambda trainer: True)
    trainer.pool.chunk = eager.pool.chunk = 50  # of 200
    told = compile_networks(trainer)
    assert told == reason or str(told).startswith(str(reason))
    for each in (eager, trainer):
        run(each, 12)
    assert recording.replays == (0 if fails else 12)
    for (name, one), other in zip(state_of(eager)[0].items(), state_of(trainer)[0].values(), strict=True):
        assert torch.equal(one, other), name
    assert state_of(eager)[1] == state_of(trainer)[1]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_replayed_graph_trains_as_eager_steps_do(recipe: Recipe, precision: str) -> None:
    """Over rounds, going back in the middle; and 50 replays take no more memory."""
    device = torch.device("cuda")
    train = recipe.train.model_copy(update={"precision": precision, "compile": True})
    points = load_points(recipe.data.source, recipe.data.resolution)
    changed = recipe.model_copy(update={"train": train})
    eager, graphed = (build(changed, points, device) for _ in range(2))
    assert compile_networks(graphed) is None
    assert graphed.advance != graphed.step_on_device
    losses = []
    for trainer in (eager, graphed):
        run(trainer, 3)
        losses.append([trainer.take_loss()])
        state = trainer.ema.state_dict(), *state_of(trainer)
        with unchanged(trainer):
            run(trainer, 2)
        restore(trainer, *state)
        run(trainer, 3)
        losses[-1].append(trainer.take_loss())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    torch.testing.assert_close(weights(graphed), weights(eager), rtol=2e-2, atol=2e-3)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(50):
        graphed.train_step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    assert int(graphed.bad_steps) == 0


@pytest.mark.gpu
def test_a_graph_that_cannot_be_recorded_leaves_training_as_it_was(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that waits for the device cannot be recorded."""
    points = load_points(recipe.data.source, recipe.data.resolution)
    eager, trainer = (build(recipe, points, torch.device("cuda")) for _ in range(2))
    forget = trainer.copies.zero_grad

    def waiting() -> None:
        trainer.loss_sum.item()
        forget()

    monkeypatch.setattr(trainer.copies, "zero_grad", waiting)
    assert compile_networks(trainer)
    assert trainer.advance == trainer.step_on_device
    monkeypatch.undo()
    for each in (eager, trainer):
        run(each, 3)
    torch.testing.assert_close(weights(trainer), weights(eager), rtol=1e-3, atol=1e-4)
