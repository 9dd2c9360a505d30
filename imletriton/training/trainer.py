"""The trainer: the papers' algorithms as one loop over epochs, rounds and steps."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from imletriton.data import content_hash
from imletriton.distance import Distance
from imletriton.errors import Fault
from imletriton.generator import Generator, latent_codes
from imletriton.search import Prepared
from imletriton.sections import TrainConfig
from imletriton.selection import Strategy
from imletriton.selection.misalignment import LATENTS, PRIOR, Misalignment
from imletriton.system.device import autocast, wants_bfloat16
from imletriton.system.distributed import ALONE, Group
from imletriton.training.memory import BATCH
from imletriton.training.pool import SamplePool
from imletriton.training.targets import embed
from imletriton.training.weights import BFloat16Copies, fused_adamw, move_average

BAD_STEPS_LIMIT = 20  # consecutive steps without finite gradients that end a run
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

    Everything random follows from (settings.seed, counters) alone, so a trainer that goes back to a saved state (see
    state.py) continues as if it had never stopped. Buffers and submodules hold all that changes, except the optimizer's
    moments and a few counters.

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
        self.device, self.group = device, group
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
        self.copies = BFloat16Copies(self.weights, [*self.working.parameters()])
        self.distance = distance.to(device)
        if self.uses_bfloat16:
            self.distance.use_bfloat16()
        features, self.targets = embed(self.distance, self.points, self.autocast())
        self.register_buffer("features", features, persistent=False)

        # What one step hands to the device; a CUDA graph of the step reads these tensors again in each replay.
        self.index = torch.zeros(self.batch, dtype=torch.int64, device=device)  # the data points of the batch
        self.learning_rate, self.ema_rate = (torch.zeros((), device=device) for _ in range(2))
        self.optimizer = fused_adamw(self.weights, self.learning_rate, settings.betas, settings.weight_decay)
        self.losses: Callable[[Tensor], Tensor] = self.pair_losses  # or the same, compiled
        self.advance: Callable[[], None] = self.step_on_device  # or a CUDA graph of it

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
        self.select_by(strategy, settings, pool_size, noise)

    def select_by(self, strategy: Strategy, settings: TrainConfig, pool_size: int, noise: float) -> None:
        """Set how neighbours are selected, and the settings that each step reads; only before the first step.

        A plan calls this once it has measured the trainer: batch size, precision, seed, betas and weight decay must be
        those that the trainer was made with. The arguments are those of the class.
        """
        self.strategy, self.settings, self.noise = strategy.to(self.device), settings, noise
        points = Prepared(self.features)
        self.pool = SamplePool(
            self.working, self.distance, points, pool_size, settings.seed, self.group, self.uses_bfloat16
        )
        prior = latent_codes(0, PRIOR + LATENTS, self.generator.latent_dim, seed=settings.seed)
        self.misalignment = Misalignment(self.features, pool_size, prior.to(self.device)).to(self.device)

    # -- the algorithm ------------------------------------------------------------------------------------------------

    def loop(self, last_step: float | None = None) -> Iterator[PoolProgress | StepDone]:
        """Train until the last step: RS-IMLE's Algorithm 1; with thresholds, Adaptive IMLE's Algorithm 3.

        Whoever iterates may stop at any time, save the state and go on from it later: an epoch whose pool was not
        complete starts again and draws the same pool.

        Args:
            last_step: The number of the last step; by default that of the settings. It may be infinite.

        Yields:
            PoolProgress after each chunk of a pool, StepDone after each training step.

        Raises:
            Fault: The generator has diverged.
        """
        while self.step < (self.settings.iterations if last_step is None else last_step):
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
        due = self._due()
        if self.needs_pool(due):
            for done in self.pool.draw(self.draws):
                yield PoolProgress(done, self.pool.size)
            self.synchronize()
            self.pool_per_s = self.pool.size / (time.perf_counter() - began)
            self.strategy.pool_drawn(self.epoch)
            self.misalignment.note_pool(self.pool.features)
            self.draws += 1
            self.pools += 1
        if due.any():
            self._select(due)
        self.selection_seconds += time.perf_counter() - began

    def needs_pool(self, due: Tensor | None = None) -> bool:
        """Whether an epoch that begins now needs a new pool, given the data points that are due, bool [n]."""
        due = self._due() if due is None else due
        return bool(due.any()) and (self.draws == 0 or self.strategy.needs_pool(due, self.epoch))

    def _due(self) -> Tensor:
        """The data points that want a new neighbour in this epoch, bool [n]."""
        return self.strategy.due(self.epoch, self.distances) | self.distances.isinf()

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
        self.distances[index] = self.measure(index)
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

    # -- a step -------------------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        """One gradient step on a batch of pairs (Algorithm 1, line 8), without waiting for the device.

        A step without finite gradients changes no weight.
        """
        s = self.settings
        # The average starts short, so that a short run does not end with its first weights.
        decay = min(s.ema, (1 + self.step) / (10 + self.step))
        self.index.copy_(self.batch_index())
        self.learning_rate.fill_(s.learning_rate * min(1.0, (self.step + 1) / max(1, s.warmup)))
        self.ema_rate.fill_(1 - decay)
        self.advance()
        self.step += 1

    def step_on_device(self) -> None:
        """The device's part of a step: changes the weights, their average and what the log tells.

        It reads and writes only tensors that stay where they are, and nothing in it waits for the device or depends on
        the host. So a CUDA graph can record it once, and replay it in each step.
        """
        mine = self.group.share(self.batch)  # this process's part of the batch
        self.copies.zero_grad()
        with self.autocast():
            my_losses = self.losses(self.index[mine])
        (my_losses.sum() * (1 / self.batch)).backward()

        with torch.no_grad():  # a graph through anything that outlives the step would never be freed
            losses = my_losses.new_zeros(self.batch)
            losses[mine] = my_losses
            loss = self.group.complete(losses).mean()
            gradients = self.copies.gradients()
            self.group.add(gradients)
            bad = (~torch.isfinite(torch.nn.utils.get_total_norm(gradients) + loss)).float()
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused step skips where it is 1
            self.optimizer.step()
            self.copies.write()
            move_average(self.averages, self.weights, self.ema_rate)

            good = 1 - bad
            self.distances[self.index] = torch.where(bad > 0, self.distances[self.index], losses)
            self.bad_steps += bad
            self.bad_in_row.copy_((self.bad_in_row + 1) * bad)
            self.loss_sum += loss.nan_to_num(0.0, 0.0, 0.0) * good
            self.loss_count += good

    def pair_losses(self, index: Tensor) -> Tensor:
        """d(x_i, T(z*_i)), float32 [k], of the data points at index, int64 [k]. Under autocast where that is used."""
        target = tuple(part[index] for part in self.targets) if self.targets else self.points[index]
        return self.distance.loss(self.working(self.assigned[index]), target)

    @torch.no_grad()
    def measure(self, index: Tensor) -> Tensor:
        """d(x_i, T(z*_i)), float32 [k], of the data points at index, int64 [k], outside of steps."""
        distances = torch.zeros(len(index), device=self.device)
        share = self.group.share(len(index))
        with self.autocast():
            for first in range(share.start, share.stop, BATCH):
                i = index[first : min(first + BATCH, share.stop)]
                # Repeats fill the batch up to a power of two: oneDNN and cuDNN keep code for each size of a batch.
                batch = i.repeat(2)[: 1 << (len(i) - 1).bit_length()]
                distances[first : first + len(i)] = self.pair_losses(batch)[: len(i)]
        return self.group.complete(distances)

    def batch_index(self) -> Tensor:
        """The data points of this step, int64 [batch]: each epoch in a new order, filled up from its start."""
        within = self.step % self.steps_per_epoch
        if within == 0 or len(self.order) == 0:
            order = self._rng(ORDER, self.epoch).permutation(self.n)
            self.order = torch.from_numpy(np.resize(order, self.steps_per_epoch * self.batch)).to(self.device)
        return self.order[within * self.batch :][: self.batch]

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        """A random stream of its own for each purpose and number; the fourth word keeps clear of the latent codes'."""
        return np.random.default_rng([self.settings.seed, 0, number, purpose])

    def autocast(self) -> AbstractContextManager[None]:
        """A context in which networks multiply in bfloat16 where the settings ask for it."""
        return autocast(self.device, self.uses_bfloat16)

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

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

    @property
    def seconds_per_pool(self) -> float:
        """The mean time that a pool and its searches take, in seconds; 0 before the first one."""
        return self.selection_seconds / self.pools if self.pools else 0.0

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
