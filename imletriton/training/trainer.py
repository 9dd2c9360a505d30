"""The trainer: the papers' algorithms as one loop over epochs, rounds and steps."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imletriton.data import content_hash
from imletriton.distance import Distance, Embedding
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator, latent_codes
from imletriton.recipe import TrainConfig
from imletriton.search import Prepared
from imletriton.selection import Strategy
from imletriton.selection.misalignment import LATENTS, PRIOR, Misalignment
from imletriton.system.device import autocast, recorded, wants_bfloat16
from imletriton.system.distributed import ALONE, Group
from imletriton.training.pool import SamplePool

BAD_STEPS_LIMIT = 20  # consecutive steps without finite gradients that end a run
LONG = 10_000  # steps from which compiling, which takes minutes, is worth it on a GPU
EVALUATION_BATCH = 16  # pairs measured at once outside training
TARGET_BYTES = 2**30  # for the targets of the data points on a CPU, at most; on a GPU, a quarter of what is free
NOISE, ORDER = 1, 2  # what a random stream is for


@dataclass(frozen=True)
class PoolProgress:
    """While a pool is drawn: how many of its samples exist, and how many there will be."""

    done: int
    size: int


@dataclass(frozen=True)
class StepDone:
    """A training step is done: its number, counted from 1."""

    step: int


class Trainer(nn.Module):
    """Trains a generator on data points under a distance, as a selection strategy decides.

    Everything random follows from (settings.seed, counters) alone, so a trainer restored from `state` goes on as if it
    had never stopped. Buffers and submodules hold all that changes, except the optimizer's moments and a few counters.

    With bfloat16, `generator` holds the weights in float32, and `working` makes the samples: it has bfloat16 copies of
    the weights that are multiplied in bfloat16, and shares all others. Each step writes the copies anew.

    Args:
        points: The n data points x_i, uint8 or float [n, ...].
        generator: T.
        distance: d.
        strategy: Decides which data points get a new neighbour, and which samples they may take.
        settings: A recipe's [train] section.
        pool_size: m.
        noise: Standard deviation of the noise added to selected latent codes.
        device: Where to train.
        group: The processes that train together. Their trainers differ only in which part of a pool and of a batch
            they compute.
    """

    points: Tensor
    features: Tensor
    assigned: Tensor
    distances: Tensor
    bad_steps: Tensor
    bad_in_row: Tensor
    loss_sum: Tensor
    loss_count: Tensor

    def __init__(
        self,
        points: Tensor,
        generator: Generator,
        distance: Distance,
        strategy: Strategy,
        settings: TrainConfig,
        pool_size: int,
        noise: float,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        super().__init__()
        self.settings, self.noise, self.device, self.group = settings, noise, device, group
        self.n, self.batch = len(points), settings.batch_size
        self.steps_per_epoch = -(-self.n // self.batch)
        self.uses_bfloat16 = wants_bfloat16(settings.precision, device)

        self.data_hash = content_hash(points)
        self.register_buffer("points", points.to(device), persistent=False)
        self.generator = generator.to(device).train()
        self.ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.working = self.generator.for_autocast() if self.uses_bfloat16 else self.generator
        self.weights: list[Tensor] = [*self.generator.parameters()]
        self.averages: list[Tensor] = [*self.ema.parameters()]
        pairs = zip(self.weights, self.working.parameters(), strict=True)
        self.copies = [(weight, rounded) for weight, rounded in pairs if weight is not rounded]
        self.distance = distance.to(device)
        if self.uses_bfloat16:
            self.distance.use_bfloat16()
        self.strategy = strategy.to(device)
        # What one step hands to the device; a CUDA graph of the step reads these tensors again in each replay.
        self.index = torch.zeros(self.batch, dtype=torch.int64, device=device)  # the data points of the batch
        self.learning_rate, self.ema_rate = (torch.zeros((), device=device) for _ in range(2))
        self.optimizer = torch.optim.AdamW(
            self.weights,
            lr=self.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        for weight in self.weights:
            moments = {key: torch.zeros_like(weight) for key in _MOMENTS}
            self.optimizer.state[weight] = {"step": torch.zeros((), device=device)} | moments
        self.losses: Callable[[Tensor], Tensor] = self._losses  # or the same, compiled
        self.advance: Callable[[], None] = self._advance  # or a CUDA graph of it
        features, self.targets = self._embed_points()
        self.register_buffer("features", features, persistent=False)  # search features of the data points
        self.pool = SamplePool(
            self.working, self.distance, Prepared(features), pool_size, settings.seed, group, self.uses_bfloat16
        )
        prior = latent_codes(0, PRIOR + LATENTS, generator.latent_dim, seed=settings.seed)
        self.misalignment = Misalignment(features, pool_size, prior.to(device)).to(device)

        # Buffers and counters keep the names under which checkpoints hold them.
        self.register_buffer("assigned", torch.zeros(self.n, generator.latent_dim, device=device))  # z*_i
        self.register_buffer("distances", torch.full((self.n,), torch.inf, device=device))  # newest d(x_i, T(z*_i))
        # Steps without finite gradients, in all and in a row; and over the good steps since the last line of the log:
        for name in ("bad_steps", "bad_in_row", "loss_sum", "loss_count"):
            self.register_buffer(name, torch.zeros((), device=device))
        self.step = 0  # training steps done
        self.rounds = 0  # selections done
        self.draws = 0  # pools drawn
        self.relaxed = 0  # rounds in which every sample of the pool was rejected
        self.loss: float | None = None  # mean training loss, as last asked for
        self.metrics: dict[str, float] = {}  # of the rounds since the last line of the log
        self.pool_per_s: float | None = None  # samples a second of the last draw by this process
        self.selection_seconds = 0.0  # spent on pools and searches by this process
        self.pools = 0  # drawn to their end by this process
        self.order = torch.empty(0)  # of the data points in this epoch

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def loop(self) -> Iterator[PoolProgress | StepDone]:
        """Train until the last step: RS-IMLE's Algorithm 1; with thresholds, Adaptive IMLE's Algorithm 3.

        Whoever iterates may stop at any time, save `state()` and go on from it later: an epoch whose pool was not
        complete starts again and draws the same pool.

        Yields:
            PoolProgress after each chunk of a pool, StepDone after each training step.

        Raises:
            Fault: The generator has diverged.
        """
        while self.step < self.settings.iterations:
            if self.step % self.steps_per_epoch == 0:  # an epoch begins
                yield from self.start_epoch()
            self.train_step()
            yield StepDone(self.step)

    def start_epoch(self) -> Iterator[PoolProgress]:
        """Give the data points that are due a new neighbour: one round, if any is due.

        Yields:
            PoolProgress after each chunk of a pool, where one is drawn. Must be exhausted.
        """
        self.synchronize()
        began = time.perf_counter()
        due = self.strategy.due(self.epoch, self.distances) | self.distances.isinf()
        if due.any():
            if self.draws == 0 or self.strategy.needs_pool(due, self.epoch):
                for done in self.pool.draw(self.draws):
                    yield PoolProgress(done, self.pool.size)
                self._note_pool(began)
            self._select(due)
        self.selection_seconds += time.perf_counter() - began

    @property
    def seconds_per_pool(self) -> float:
        """The mean time that a pool and its searches take, in seconds; 0 before the first one."""
        return self.selection_seconds / self.pools if self.pools else 0.0

    def draws_next(self) -> bool:
        """Whether a new pool comes before the next step, where that begins an epoch."""
        due = self.strategy.due(self.epoch, self.distances) | self.distances.isinf()
        return bool(due.any()) and (self.draws == 0 or self.strategy.needs_pool(due, self.epoch))

    def _note_pool(self, began: float) -> None:
        """Tell those who need to know that a pool was drawn, since `began` on the clock."""
        self.synchronize()
        self.pool_per_s = self.pool.size / (time.perf_counter() - began)
        self.strategy.pool_drawn(self.epoch)
        self.misalignment.note_pool(self.pool.features)
        self.draws += 1
        self.pools += 1

    def _select(self, due: Tensor) -> None:
        """Assign to each data point that is due, bool [n], its nearest admissible sample: z*_i (Algorithm 1, line 6).

        What is rejected is decided by the strategy's radius (lines 4 and 5).
        """
        radius = self.strategy.reject_radius(self.pool.points, self.pool.prepared)
        neighbours = self.pool.nearest(due, radius)
        accepted = int(neighbours.accepted)
        if accepted == 0:
            # No sample is admissible. The nearest rejected sample is better than none, and the log says so.
            neighbours = self.pool.nearest(due)
            self.relaxed += 1
        index = (due & (neighbours.index >= 0)).nonzero()[:, 0]
        if len(index) == 0:
            raise Fault("No sample of the pool is finite: the generator has diverged; lower train.learning_rate.")
        sample = neighbours.index[index]
        noise = self._rng(NOISE, self.rounds).standard_normal(self.assigned.shape, dtype=np.float32)
        latents = self.pool.latents_at(sample) + self.noise * torch.from_numpy(noise).to(self.device)[index]
        self.assigned[index] = latents
        self.distances[index] = self._measure(index)
        self.strategy.latents_assigned(due, self.epoch, self.distances)
        distance = neighbours.sq_distance[index].sqrt()
        self.misalignment.note_selected(index, latents, distance)
        self.rounds += 1
        shares = sample.unique(return_counts=True)[1]
        self.metrics |= {
            "refreshed": len(index) / self.n,
            "accepted": accepted,
            "rejected": self.pool.size - accepted,
            "rejected_share": 1 - accepted / self.pool.size,
            "relaxed": self.relaxed,
            "distinct": len(shares) / len(index),
            "most_shared": int(shares.max()),
            "nearest": float(distance.mean()),
        }
        self.metrics |= self.strategy.metrics()

    def train_step(self) -> None:
        """One gradient step on a batch of pairs (Algorithm 1, line 8), without waiting for the device.

        A step without finite gradients changes no weight.
        """
        s = self.settings
        # The average starts short, so that a short run does not end with its first weights.
        decay = min(s.ema, (1 + self.step) / (10 + self.step))
        self.index.copy_(self._batch())
        self.learning_rate.fill_(s.learning_rate * min(1.0, (self.step + 1) / max(1, s.warmup)))
        self.ema_rate.fill_(1 - decay)
        self.advance()
        self.step += 1

    def _advance(self) -> None:
        """The device's part of a step: changes the weights, their average and what the log tells.

        It reads and writes only tensors that stay where they are, and nothing in it waits for the device or depends on
        the host. So a CUDA graph can record it once, and replay it in each step.
        """
        self.forget_gradients()
        with self.autocast():
            losses = self.losses(self.index[self.group.share(self.batch)])
        (losses.sum() * (1 / self.batch)).backward()
        self._update(losses.detach())

    @torch.no_grad()  # a graph through the averaged weights, or through anything else kept here, would never be freed
    def _update(self, my_losses: Tensor) -> None:
        """After the backward pass: what a step changes, given the losses of this process's part of the batch."""
        losses = my_losses.new_zeros(self.batch)
        losses[self.group.share(self.batch)] = my_losses
        loss = self.group.complete(losses).mean()

        gradients = self._gradients()
        self.group.add(gradients)
        bad = (~torch.isfinite(torch.nn.utils.get_total_norm(gradients) + loss)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused step skips where it is 1
        self.optimizer.step()
        self._write_copies()
        # ema <- ema - rate (ema - weights): a step of gradient descent for |ema - weights|^2 / 2, as PyTorch's fused
        # optimizer does it in one pass: with weight decay 1, ascending the "gradient" weights.
        torch._fused_sgd_(
            self.averages,
            self.weights,
            [],
            lr=self.ema_rate,
            weight_decay=1.0,
            maximize=True,
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            is_first_step=False,
        )

        good = 1 - bad
        self.distances[self.index] = torch.where(bad > 0, self.distances[self.index], losses)
        self.bad_steps += bad
        self.bad_in_row.copy_((self.bad_in_row + 1) * bad)
        self.loss_sum += loss.nan_to_num(0.0, 0.0, 0.0) * good
        self.loss_count += good

    def _losses(self, index: Tensor) -> Tensor:
        """d(x_i, T(z*_i)), float32 [k], of the data points at index, int64 [k]. Under autocast where that is used."""
        target = tuple(part[index] for part in self.targets) if self.targets else self.points[index]
        return self.distance.loss(self.working(self.assigned[index]), target)

    def _gradients(self) -> list[Tensor]:
        """The gradients of the weights in float32, after those of the copies have been converted."""
        found = [(weight, gradient) for weight, rounded in self.copies if (gradient := rounded.grad) is not None]
        if found:
            wide = [torch.empty_like(weight) for weight, _ in found]
            torch._foreach_copy_(wide, [gradient for _, gradient in found])
            for (weight, _), gradient in zip(found, wide, strict=True):
                weight.grad = gradient
        return [gradient for weight in self.weights if (gradient := weight.grad) is not None]

    def forget_gradients(self) -> None:
        """Give back the memory of all gradients."""
        for weight in (*self.weights, *(rounded for _, rounded in self.copies)):
            weight.grad = None

    @torch.no_grad()
    def _write_copies(self) -> None:
        """Round the weights to their bfloat16 copies."""
        if self.copies:
            torch._foreach_copy_([rounded for _, rounded in self.copies], [weight for weight, _ in self.copies])

    # -- what it reports ----------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The number of the current epoch, counted from 0."""
        return int(self.step // self.steps_per_epoch)

    @property
    def healthy(self) -> bool:
        """Whether the last step had finite gradients. Waits for the device."""
        return not self.bad_in_row

    @property
    def finite(self) -> bool:
        """Whether the weights and their averages are finite, all of them. Waits for the device."""
        return bool(torch.stack([tensor.isfinite().all() for tensor in (*self.weights, *self.averages)]).all())

    def take_metrics(self) -> dict[str, float]:
        """The metrics of the rounds since last asked, and those of the misalignment; none where there was no round."""
        metrics, self.metrics = self.metrics, {}
        return metrics | self.misalignment.metrics() if metrics else {}

    def take_loss(self) -> float | None:
        """The mean loss of the good steps since last asked; where there were none, what it was before.

        Raises:
            Fault: Too many consecutive steps had no finite gradients.
        """
        bad_in_row = int(self.bad_in_row)
        if bad_in_row >= BAD_STEPS_LIMIT:
            raise Fault(f"{bad_in_row} steps in a row had no finite gradients: lower train.learning_rate.")
        if self.loss_count > 0:
            self.loss = float(self.loss_sum / self.loss_count)
        self.loss_sum.zero_()
        self.loss_count.zero_()
        return self.loss

    # -- compiling ----------------------------------------------------------------------------------------------------

    @property
    def compiles(self) -> bool:
        """Whether the settings ask for `compile_networks`."""
        if self.settings.compile != "auto":
            return self.settings.compile
        return self.device.type == "cuda" and self.settings.iterations >= LONG

    @property
    def uses_graphs(self) -> bool:
        """Whether compiling also records CUDA graphs. They want one process: results of others arrive at any time."""
        return self.device.type == "cuda" and self.group.size == 1

    def compiled(self, function: Callable[[Tensor], Tensor], graphs: bool = False) -> Callable[[Tensor], Tensor]:
        """Compile a function of this trainer's networks, on request as CUDA graphs of its own."""
        products = self.device.type == "cuda"  # 1x1 convolutions as matmuls; on a CPU, convolutions are faster
        return torch.compile(function, options={"conv_1x1_as_mm": products, "triton.cudagraphs": graphs})

    def compile_networks(self) -> str | None:
        """Compile the networks of training steps and of the pool's chunks, and record CUDA graphs, for this device.

        Returns:
            None, or the reason why that failed; training then goes on without.
        """
        eager = self.losses, self.advance, self.pool.make_features, self.pool.fixed_chunks
        self.losses = self.compiled(self.losses)
        self.pool.make_features = self.compiled(self.pool.make_features, graphs=self.uses_graphs)
        self.pool.fixed_chunks = True
        try:
            with self.unchanged():
                for prepare in (self._prepare_steps, self._prepare_chunks):
                    # Without the memory: the pool makes do with smaller chunks; a step that needs too much will tell.
                    with contextlib.suppress(torch.OutOfMemoryError):
                        prepare()
        except RuntimeError as error:
            self.losses, self.advance, self.pool.make_features, self.pool.fixed_chunks = eager
            return str(error).strip().splitlines()[0]
        return None

    def _prepare_steps(self) -> None:
        """Run what steps have compiled, so that it is compiled, and record the CUDA graph."""
        with self.autocast():  # without the other processes, which may fail to compile
            self.losses(self.index[self.group.share(self.batch)]).sum().backward()
        if self.uses_graphs:
            self.optimizer.param_groups[0]["capturable"] = True  # as every fused optimizer is; recording asks for it
            self.advance = recorded(self._advance, self.device)

    def _prepare_chunks(self) -> None:
        z = self.assigned.new_zeros(self.pool.chunk, self.assigned.shape[1])
        for _ in range(3):  # to compile, to warm up, to record a CUDA graph
            with torch.no_grad(), self.autocast():
                self.pool.make_features(z)

    # -- state --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """A context after which training goes on as if nothing had been trained in it."""
        ema, (tensors, state) = copy.deepcopy((self.ema.state_dict(), self.state()))
        try:
            yield
        finally:
            self.restore(ema, tensors, state)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on needs besides the averaged weights and the recipe: tensors, and plain values."""
        tensors = {k: v for k, v in self.state_dict().items() if not k.startswith(_NOT_SAVED)}
        for name, parameter in self.generator.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        if self.strategy.reuses_pool and self.draws:
            tensors["pool.features"] = self.pool.features
        counters = {k: getattr(self, k) for k in _COUNTERS}
        return tensors, counters | {"figures": self.metrics, "data": self.data_hash}

    def restore(self, ema: dict[str, Tensor], tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to a saved state: the averaged weights, and what `state` returned.

        Raises:
            InputError: The data points are not those that were trained on.
            ValueError: The state is incomplete, belongs to another recipe, or has weights that are not finite.
        """
        if state["data"] != self.data_hash:
            raise InputError("data.source holds other pictures than this run was trained on: start a new run.")
        if lacking := [key for key in (*_COUNTERS, "figures") if key not in state]:
            raise ValueError(f"its state lacks {lacking[0]}")
        own = {k: v for k, v in tensors.items() if not k.startswith(("optimizer.", "pool."))}
        own |= {f"ema.{k}": v for k, v in ema.items()}
        _load(self, own, lambda name: not name.startswith(("distance.", "working.")))
        if not self.finite:
            raise ValueError("its weights are NaN or infinite")
        self._restore_optimizer(tensors, state["step"])
        self._write_copies()
        self.forget_gradients()
        for key in _COUNTERS:
            setattr(self, key, state[key])
        self.metrics = state["figures"]
        self.order = torch.empty(0)  # that of another epoch, perhaps
        if self.strategy.reuses_pool and self.draws:
            features = tensors.get("pool.features", torch.empty(0))
            if features.shape != (shape := (self.pool.size, self.features.shape[1])):
                raise ValueError(f"pool.features has the shape {tuple(features.shape)}, not {shape}")
            self.pool.restore(self.draws - 1, features.float())

    def _restore_optimizer(self, tensors: dict[str, Tensor], step: int) -> None:
        """Put saved moments where the optimizer keeps its own, which a CUDA graph may know.

        Version 0.1 saved none before the first step; they were 0.
        """
        state = self.optimizer.state
        prefixes = {key: f"optimizer.{key}." for key in ("step", *_MOMENTS)}
        saved = {
            key: {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for key, prefix in prefixes.items()
        }
        names = set[str]().union(*saved.values())
        if lacking := [key for key in saved if saved[key].keys() != names or not (names or step == 0)]:
            raise ValueError(f"it lacks a tensor of the optimizer's {lacking[0]}")
        done, *others = {float(value.sum()) for value in saved["step"].values()} or {0.0}
        if others or not 0 <= done <= step:  # the same for all weights, and bad steps do not count
            raise ValueError("its optimizer has not done the steps of its trainer")
        # Moments have the names and shapes of weights, so a generator reads those of earlier versions too.
        reader = copy.deepcopy(self.generator).requires_grad_(False)
        for key in _MOMENTS:
            for moment in reader.parameters():
                moment.zero_()
            if names:
                _load(reader, saved[key], dict(reader.named_parameters()).__contains__)
            for weight, moment in zip(self.weights, reader.parameters(), strict=True):
                state[weight]["step"].fill_(done)
                state[weight][key].copy_(moment)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which networks multiply in bfloat16 where the settings ask for it."""
        return autocast(self.device, self.uses_bfloat16)

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        """A random stream of its own for each purpose and number; the fourth word keeps clear of the latent codes'."""
        return np.random.default_rng([self.settings.seed, 0, number, purpose])

    def _batch(self) -> Tensor:
        """The data points of this step, int64 [batch]: each epoch in a new order, filled up from its start."""
        within = self.step % self.steps_per_epoch
        if within == 0 or len(self.order) == 0:
            order = self._rng(ORDER, self.epoch).permutation(self.n)
            self.order = torch.from_numpy(np.resize(order, self.steps_per_epoch * self.batch)).to(self.device)
        return self.order[within * self.batch :][: self.batch]

    @torch.no_grad()
    def _embed_points(self) -> tuple[Tensor, Embedding | None]:
        """The search features of the data points, float32 [n, d], and their targets for the loss where they fit."""
        features = []
        targets: Embedding | None = None
        room = torch.cuda.mem_get_info(self.device)[0] // 4 if self.device.type == "cuda" else TARGET_BYTES
        with self.autocast():
            for start in range(0, self.n, EVALUATION_BATCH):
                points = self.points[start : start + EVALUATION_BATCH]
                embedding = self.distance.embed(points)
                features.append(self.distance.features(points, embedding))
                if start and targets is None:  # they do not fit
                    continue
                parts = self.distance.target(points, embedding)
                if start == 0 and self.n * sum(part[0].nbytes for part in parts) <= room:
                    targets = tuple(part.new_empty(self.n, part.shape[1]) for part in parts)
                for target, part in zip(targets or (), parts, strict=targets is not None):
                    target[start : start + len(points)] = part
        return torch.cat(features), targets

    @torch.no_grad()
    def _measure(self, index: Tensor) -> Tensor:
        """d(x_i, T(z*_i)), float32 [k], of the data points at index, int64 [k]."""
        distances = torch.zeros(len(index), device=self.device)
        share = self.group.share(len(index))
        with self.autocast():
            for first in range(share.start, share.stop, EVALUATION_BATCH):
                i = index[first : min(first + EVALUATION_BATCH, share.stop)]
                # Repeats fill the batch up to a power of two: oneDNN and cuDNN keep code for each size of a batch.
                batch = i.repeat(2)[: 1 << (len(i) - 1).bit_length()]
                distances[first : first + len(i)] = self._losses(batch)[: len(i)]
        return self.group.complete(distances)


def _load(module: nn.Module, tensors: dict[str, Tensor], needed: Callable[[str], bool]) -> None:
    """Load a module's tensors.

    Raises:
        ValueError: A tensor that is needed is missing, or one is not known or of another shape.
    """
    try:
        missing, unexpected = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # a shape: the last of several lines says which
        raise ValueError(str(error).splitlines()[-1].strip().rstrip(".")) from error
    if lacking := [*filter(needed, missing)]:
        raise ValueError(f"it lacks {lacking[0]}")
    if unexpected:
        raise ValueError(f"its {unexpected[0]} is not known")


# The averaged weights have a file of their own, the distance never changes, and `working` follows from the weights.
_NOT_SAVED = ("ema.", "distance.", "working.")
_MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps for each weight, besides the number of steps
_COUNTERS = ("step", "rounds", "draws", "relaxed", "loss")
