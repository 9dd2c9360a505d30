import pytest
import torch
from torch import Tensor

from imletriton.build import build
from imletriton.data import load_points
from imletriton.errors import Fault
from imletriton.recipe import Recipe
from imletriton.trainer import BAD_STEPS_LIMIT, Trainer

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
        seen.append(trainer._batch())
    assert [len(batch) for batch in seen] == [32] * 4
    assert set(torch.cat(seen).tolist()) == set(range(100))


def test_a_batch_larger_than_the_data_repeats_them(recipe: Recipe) -> None:
    trainer = trainer_of(recipe, batch_size=250)
    assert trainer.steps_per_epoch == 1
    assert set(trainer._batch().bincount().tolist()) == {2, 3}
    run(trainer, 2)


def test_each_point_takes_its_nearest_sample_of_the_pool(recipe: Recipe) -> None:
    """Against a search by the loss itself, sample by sample."""
    trainer = trainer_of(recipe, precision="float32")
    trainer.noise = 0.0
    list(trainer.start_epoch())
    with torch.no_grad():
        samples = trainer.generator(trainer.pool.latents)
        loss = torch.stack([trainer.distance.loss(samples, x.expand_as(samples)) for x in trainer.points])
    features = torch.cdist(trainer.features.double(), trainer.pool.features.double())
    assert torch.equal(trainer.assigned, trainer.pool.latents[features.argmin(1)])
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
        next(trainer.generator.parameters()).fill_(torch.nan)
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
    tensors, state = half.state()
    restored = run(trainer_of(recipe), 2)  # what it did before must not matter
    restored.restore(half.ema.state_dict(), tensors, state)
    run(restored, 15)
    for a, b in zip(whole.state()[0].items(), restored.state()[0].items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1]), a[0]
    assert whole.state()[1] == restored.state()[1]


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
        found = trainer._measure(torch.arange(count))
        torch.testing.assert_close(found, trainer.distances[:count], rtol=1e-4, atol=1e-6)
    assert sizes == {1, 2, 4, 8, 16}


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


def test_compiled_training_is_the_same(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph each, with chunks all of one size; by a back end that takes no minutes."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options: real(f, backend="aot_eager", fullgraph=True))
    eager, compiled = trainer_of(recipe), trainer_of(recipe, compile=True)
    assert not eager.compiles
    assert compiled.compiles
    for trainer in (eager, compiled):
        trainer.pool.chunk = 128  # of 200
    assert compiled.compile_networks() is None
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
    assert trainer.compile_networks() == "no compiler here"
    assert torch.equal(weights(run(trainer, 3)), weights(run(eager, 3)))
