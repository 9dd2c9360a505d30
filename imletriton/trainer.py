"""The trainer: the papers' algorithms as one loop over epochs, rounds and steps."""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imletriton.data import content_hash
from imletriton.distance import Distance, Embedding, as_float
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator, latent_codes
from imletriton.pool import SamplePool
from imletriton.recipe import TrainConfig
from imletriton.selection import Strategy
from imletriton.selection.misalignment import LATENTS, PRIOR, Misalignment
from imletriton.system.device import multiplies_bfloat16
from imletriton.system.distributed import ALONE, Group

BAD_STEPS_LIMIT = 20  # steps in a row without finite gradients that end a run
LONG = 10_000  # steps from which compiling, which takes minutes, is worth it on a GPU
EVALUATION_BATCH = 16  # pairs measured at once outside training
TARGET_BYTES = 2**30  # embeddings of the data kept for the loss, at most, where no GPU says what is free
NOISE, ORDER = 1, 2  # purposes of random streams


class Trainer:
    """Trains a generator on data points under a distance, as a strategy selects.

    points: n data points, uint8 or float [n, ...]. settings: a recipe's [train] section. pool_size: m. noise: standard
    deviation of what is added to selected latents. Everything random follows from (settings.seed, counters) alone, so
    a trainer restored from `state` goes on as if it had never stopped. group: the processes that train together, each
    with a trainer that differs in its shares of a pool and a batch alone.
    """

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
        self.settings, self.noise, self.device, self.group = settings, noise, device, group
        self.n, self.batch = len(points), settings.batch_size
        self.steps_per_epoch = -(-self.n // self.batch)
        self.bfloat16 = wants_bfloat16(settings.precision, device)

        self.data_hash = content_hash(points)
        self.points = points.to(device)
        self.generator = generator.to(device).train()
        self.ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.parallel: nn.Module = self.generator  # whose gradients are those of all processes
        if group.size > 1:
            ids = [device] if device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.generator, ids, gradient_as_bucket_view=True)
        self.distance = distance.to(device)
        if self.bfloat16:
            self.distance.use_bfloat16()
        self.strategy = strategy.to(device)
        self.optimizer = torch.optim.AdamW(
            self.generator.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.pool = SamplePool(self.generator, self.distance, pool_size, settings.seed, group)
        self.objective: Callable[..., Tensor] = self._objective
        self.features, self.targets = self._embed_points()
        prior = latent_codes(0, PRIOR + LATENTS, generator.latent_dim, seed=settings.seed)
        self.misalignment = Misalignment(self.features, pool_size, prior.to(device)).to(device)

        self.assigned = torch.zeros(self.n, generator.latent_dim, device=device)  # z*_i
        self.distances = torch.full((self.n,), torch.inf, device=device)  # newest known d(x_i, T(z*_i))
        self.bad_steps = torch.zeros((), device=device)  # without finite gradients, in all
        self.bad_in_row = torch.zeros((), device=device)
        self.loss_sum = torch.zeros((), device=device)  # over the good steps since the last log line
        self.loss_count = torch.zeros((), device=device)
        self.step = 0  # training steps done
        self.rounds = 0  # selections done
        self.draws = 0  # pools drawn
        self.relaxed = 0  # rounds whose pool was rejected whole
        self.loss: float | None = None  # mean training loss, as last asked for
        self.figures: dict[str, float] = {}  # of the rounds since the last log line
        self.pool_per_s: float | None = None  # samples a second of the last draw by this process
        self.order = torch.empty(0)

    # -- a round: Algorithm 1, lines 4-5 of both papers; Algorithm 3, lines 10-23 of Adaptive IMLE ------------------

    @property
    def epoch(self) -> int:
        return int(self.step // self.steps_per_epoch)

    def start_epoch(self, progress: Callable[[int], None] = lambda done: None) -> dict[str, float]:
        """Give data points that are due their new neighbours; figures to log, none where no point was due.

        progress is told how many of the pool's samples are made. What it raises may be saved and resumed from: the
        epoch then starts again and draws the same pool.
        """
        due = self.strategy.due(self.epoch, self.distances) | self.distances.isinf()
        if not due.any():
            return {}
        if self.draws == 0 or self.strategy.needs_pool(due, self.epoch):
            began = time.perf_counter()
            with self.autocast():
                self.pool.draw(self.draws, progress)
            self.synchronize()
            self.pool_per_s = self.pool.size / (time.perf_counter() - began)
            self.strategy.pool_drawn(self.epoch)
            self.misalignment.note_pool(self.pool.features)
            self.draws += 1
        radius = self.strategy.reject_radius(self.features, self.pool.features)
        search = self.pool.nearest(self.features, due, radius)
        accepted = int(search.accepted)
        if accepted == 0:
            # Nothing is admissible: better the nearest rejected sample than none, and the log says so.
            search = self.pool.nearest(self.features, due)
            self.relaxed += 1
        chosen = (due & (search.index >= 0)).nonzero()[:, 0]
        if len(chosen) == 0:
            raise Fault("No sample of the pool is finite: the generator has diverged; lower train.learning_rate.")
        noise = self._rng(NOISE, self.rounds).standard_normal(self.assigned.shape, dtype=np.float32)
        perturbed = (
            self.pool.latents[search.index[chosen]] + self.noise * torch.from_numpy(noise).to(self.device)[chosen]
        )
        self.assigned[chosen] = perturbed
        self.distances[chosen] = self._measure(chosen)
        self.strategy.latents_assigned(due, self.epoch, self.distances)
        nearest = search.sq_distance[chosen].sqrt()
        self.misalignment.note_selected(chosen, perturbed, nearest)
        self.rounds += 1
        shares = search.index[chosen].unique(return_counts=True)[1]
        figures = {
            "refreshed": len(chosen) / self.n,
            "accepted": accepted,
            "rejected": self.pool.size - accepted,
            "rejected_share": 1 - accepted / self.pool.size,
            "relaxed": self.relaxed,
            "distinct": len(shares) / len(chosen),
            "most_shared": int(shares.max()),
            "nearest": float(nearest.mean()),
        }
        figures |= self.strategy.metrics()
        self.figures |= figures
        return figures

    # -- a step: line 8 of Algorithm 1 --------------------------------------------------------------------------------

    def train_step(self) -> None:
        """One mini-batch, without waiting for the device; a step without finite gradients changes no weight."""
        index = self._batch()
        share = self.group.share(self.batch)
        mine = index[share]
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            my_losses = self.objective(self.assigned[mine], self._target(mine))
        (my_losses.sum() * (self.group.size / self.batch)).backward()  # gradients are averaged over processes
        self._update(index, share, my_losses.detach())

    @torch.no_grad()  # a graph through the averaged weights, or through anything else kept here, would never be freed
    def _update(self, index: Tensor, share: slice, my_losses: Tensor) -> None:
        """Weights, their average and the figures after the backward pass of a batch: data points at index [batch]."""
        s = self.settings
        per_point = my_losses.new_zeros(self.batch)
        per_point[share] = my_losses
        loss = self.group.complete(per_point).mean()

        gradients = [p.grad for p in self.generator.parameters() if p.grad is not None]
        bad = (~torch.isfinite(torch.nn.utils.get_total_norm(gradients) + loss)).float()
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]  # the fused step skips where it is 1
        for group in self.optimizer.param_groups:
            group["lr"] = s.learning_rate * min(1.0, (self.step + 1) / max(1, s.warmup))
        self.optimizer.step()
        # The average starts short, so that a short run does not end with its first weights.
        decay = min(s.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.generator.parameters()), 1 - decay)

        good = 1 - bad
        self.distances[index] = torch.where(bad > 0, self.distances[index], per_point)
        self.bad_steps += bad
        self.bad_in_row = (self.bad_in_row + 1) * bad
        self.loss_sum += loss.nan_to_num(0.0, 0.0, 0.0) * good
        self.loss_count += good
        self.step += 1

    def _objective(self, z: Tensor, target: Tensor | Embedding) -> Tensor:
        """d(T(z), target) for each pair."""
        return self.distance.loss(self.parallel(z), target)

    @property
    def compiles(self) -> bool:
        """Whether the settings ask for `compile`."""
        if self.settings.compile != "auto":
            return self.settings.compile
        return self.device.type == "cuda" and self.settings.iterations >= LONG

    def compile(self) -> str | None:
        """Compile the step and the pool's chunks for this device; why not, where that fails: all is as it was then."""
        eager = self.objective, self.pool.make, self.pool.fixed
        # CUDA graphs want one process: others' gradients arrive whenever they do.
        mode = "reduce-overhead" if self.device.type == "cuda" and self.group.size == 1 else None
        self.objective, self.pool.make = (torch.compile(f, mode=mode) for f in (self._objective, self.pool.make))
        self.pool.fixed = True
        index = torch.arange(self.batch, device=self.device)[self.group.share(self.batch)] % self.n
        z = self.assigned.new_zeros(self.pool.chunk, self.assigned.shape[1])
        try:
            for _ in range(3):  # to compile, to warm up, to record a CUDA graph
                self.optimizer.zero_grad(set_to_none=True)
                with self.autocast():
                    self.objective(self.assigned[index], self._target(index)).sum().backward()
                    with torch.no_grad():
                        self.pool.make(z)
        except torch.OutOfMemoryError:
            pass  # the pool makes do with less; a step that needs too much will tell
        except RuntimeError as error:
            self.objective, self.pool.make, self.pool.fixed = eager
            return str(error).strip().splitlines()[0]
        finally:
            self.optimizer.zero_grad(set_to_none=True)
        return None

    def _target(self, index: Tensor) -> Tensor | Embedding:
        """The data points at index, or their embedding where that is kept."""
        return tuple(t[index] for t in self.targets) if self.targets else self.points[index]

    @property
    def healthy(self) -> bool:
        """Whether the last step had finite gradients. Waits for the device."""
        return not self.bad_in_row

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def take_figures(self) -> dict[str, float]:
        """The figures of the rounds since last asked, and how selection and prior are aligned; none without a round."""
        figures, self.figures = self.figures, {}
        return figures | self.misalignment.metrics() if figures else {}

    def take_loss(self) -> float | None:
        """Mean loss of the good steps since last asked; where there were none, what it was before.

        Raises Fault after too many bad steps in a row.
        """
        bad_in_row = int(self.bad_in_row)
        if bad_in_row >= BAD_STEPS_LIMIT:
            raise Fault(f"{bad_in_row} steps in a row had no finite gradients: lower train.learning_rate.")
        if self.loss_count > 0:
            self.loss = float(self.loss_sum / self.loss_count)
        self.loss_sum.zero_()
        self.loss_count.zero_()
        return self.loss

    # -- state --------------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that going on needs besides the EMA weights and the recipe: tensors, and plain values."""
        tensors = {f"generator.{k}": v for k, v in self.generator.state_dict().items()}
        for name, parameter in self.generator.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors |= {f"strategy.{k}": v for k, v in self.strategy.state_dict().items()}
        tensors |= {f"misalignment.{k}": v for k, v in self.misalignment.state_dict().items()}
        tensors |= {k: getattr(self, k) for k in _TENSORS}
        if self.strategy.reuses_pool and self.draws:
            tensors["pool.features"] = self.pool.features
        counters = {k: getattr(self, k) for k in _COUNTERS}
        return tensors, counters | {"data": self.data_hash}

    def restore(self, ema: dict[str, Tensor], tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go back to a saved state. Raises InputError where the data are not those that were trained on."""
        if state["data"] != self.data_hash:
            raise InputError("data.source holds other pictures than this run was trained on: start a new run.")
        self.ema.load_state_dict(ema)
        self.generator.load_state_dict(_under(tensors, "generator."))
        self.strategy.load_state_dict(_under(tensors, "strategy."))
        self.misalignment.load_state_dict(_under(tensors, "misalignment."))
        for name, parameter in self.generator.named_parameters():
            names = {key: f"optimizer.{key}.{name}" for key in ("step", "exp_avg", "exp_avg_sq")}
            saved = {key: tensors[name] for key, name in names.items() if name in tensors}
            # The fused step wants moments that lie in memory as their parameter does.
            self.optimizer.state[parameter] = {
                key: value.to(self.device) if key == "step" else torch.empty_like(parameter).copy_(value)
                for key, value in saved.items()
            }
        for key in _TENSORS:
            getattr(self, key).copy_(tensors[key])
        for key in _COUNTERS:
            setattr(self, key, state[key])
        self.order = torch.empty(0)  # of an epoch that may not be the restored one
        if "pool.features" in tensors:
            self.pool.restore(self.draws - 1, tensors["pool.features"])

    # -- helpers ------------------------------------------------------------------------------------------------------

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 products where asked for; distances and norms stay in float32 by themselves."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        """A random stream of its own for each purpose and number; the fourth word keeps clear of the latents'."""
        return np.random.default_rng([self.settings.seed, 0, number, purpose])

    def _batch(self) -> Tensor:
        """The data points of this step, int64 [batch]: each epoch a new order, filled up from its start."""
        within = self.step % self.steps_per_epoch
        if within == 0 or len(self.order) == 0:
            order = self._rng(ORDER, self.epoch).permutation(self.n)
            self.order = torch.from_numpy(np.resize(order, self.steps_per_epoch * self.batch)).to(self.device)
        return self.order[within * self.batch :][: self.batch]

    @torch.no_grad()
    def _embed_points(self) -> tuple[Tensor, Embedding | None]:
        """The data's search features, and their embeddings for the loss where they fit."""
        features, kept = [], []
        room = torch.cuda.mem_get_info(self.device)[0] // 4 if self.device.type == "cuda" else TARGET_BYTES
        with self.autocast():
            for points in self.points.split(EVALUATION_BATCH):
                embedding = self.distance.embed(points)
                features.append(self.distance.features(points, embedding))
                if 4 * self.n * sum(part.shape[1] for part in embedding) <= room:
                    kept.append(embedding)
        return torch.cat(features), tuple(torch.cat(parts) for parts in zip(*kept, strict=True)) or None

    @torch.no_grad()
    def _measure(self, index: Tensor) -> Tensor:
        """d(x_i, T(z*_i)) of the data points at index."""
        found = torch.zeros(len(index), device=self.device)
        share = self.group.share(len(index))
        with self.autocast():
            for first in range(share.start, share.stop, EVALUATION_BATCH):
                i = index[first : min(first + EVALUATION_BATCH, share.stop)]
                # Filled up to a power of two by repeats: oneDNN and cuDNN keep code for each size of a batch.
                whole = i.repeat(2)[: 1 << (len(i) - 1).bit_length()]
                losses = self.distance.loss(self.generator(self.assigned[whole]), as_float(self.points[whole]))
                found[first : first + len(i)] = losses[: len(i)]
        return self.group.complete(found)


_TENSORS = ("assigned", "distances", "bad_steps", "bad_in_row", "loss_sum", "loss_count")
_COUNTERS = ("step", "rounds", "draws", "relaxed", "loss", "figures")


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def wants_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether products run in bfloat16: as the recipe says, or, for "auto", where the device multiplies it fast."""
    return multiplies_bfloat16(device) if precision == "auto" else precision == "bfloat16"
