"""The contents of a run's files as types: eval.json, the lines of log.jsonl, and trainer.json of a checkpoint."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=0, lt=2**53)]  # the integers that every JSON reader holds exactly


class Title(NamedTuple):
    """A metric's name for people, and whether lower or higher values are better."""

    name: str
    arrow: Literal["↓", "↑"]

    def __str__(self) -> str:
        return f"{self.name} {self.arrow}"


METRICS = {
    "fid": Title("FID", "↓"),
    "kid": Title("KID", "↓"),
    "precision": Title("precision", "↑"),
    "recall": Title("recall", "↑"),
    "authenticity": Title("authenticity", "↑"),
    "backtracking": Title("LPIPS backtracking", "↓"),
}


class Metric(BaseModel):
    """The value of one metric and how it was measured. Fields that do not apply are not set."""

    value: float
    deviation: float | None = None  # standard deviation of the value (KID)
    samples: int | None = None  # samples that were compared
    reference: float | None = None  # value for real pictures (authenticity)
    pictures: int | None = None  # training pictures (authenticity) or reconstructed pictures (backtracking)
    starts: int | None = None  # random latent codes that each reconstruction starts from (backtracking)
    steps: int | None = None  # optimisation steps from each of them (backtracking)


class Evaluation(BaseModel):
    """The result of `evaluate`, as in eval.json and in the output of `imletriton eval --json`."""

    run: str | None  # the run's folder; None if a folder of pictures was measured without a run
    step: int | None  # of the checkpoint; None if the samples come from elsewhere
    samples: str  # the folder of the samples, or "seed 0" and so on for samples of a generator
    count: int  # of samples
    data: str  # the source of the pictures that the samples were compared with
    pictures: int  # number of those pictures
    resolution: int  # pixels a side
    weights: Literal["pretrained", "random"]  # of the networks whose features were compared
    metrics: dict[str, Metric]  # by the names in METRICS
    published: dict[str, dict[str, float]]  # {method: {metric: value}} in the papers, for the same pictures
    notes: list[str]  # sentences that a reader of the metrics must know
    imletriton: str  # version of this package
    written: str | None  # the eval.json that holds this; None if it was not written

    @field_validator("metrics")
    @classmethod
    def _check_names(cls, metrics: dict[str, Metric]) -> dict[str, Metric]:
        if unknown := metrics.keys() - METRICS.keys():
            raise ValueError(f"{min(unknown)} is not a metric")
        return metrics

    @property
    def subject(self) -> str:
        """The name of the model or folder that was measured."""
        if self.step is not None:
            return f"{self.run}, step {self.step}"
        return self.run if self.run and self.samples.startswith("seed ") else self.samples

    @property
    def copies(self) -> str | None:
        """Explain the authenticity in plain words; None if it was not measured."""
        if (found := self.metrics.get("authenticity")) is None:
            return None
        text = (
            f"{found.value:.0%} of {found.samples:,} samples are new pictures rather than copies: each of them differs "
            "more from the training picture that it resembles most than that picture does from any other."
        )
        if found.reference is None or found.pictures is None:
            return text
        text += f" Of the {found.pictures} training pictures, each compared with the others, {found.reference:.0%} do."
        if found.value < found.reference - found.pictures**-0.5:  # two standard errors of a share of about a half
            return (
                f"{text} So the samples are closer to the training pictures than new pictures of their kind would be."
            )
        return f"{text} So the samples are no closer to the training pictures than new pictures of their kind would be."

    def for_others(self) -> Self:
        """A copy for publication: without the folders that the pictures and checkpoints are in."""
        notes = [re.sub(r"(?<!\S)/(.*/)?(?=[^/]+/checkpoints/\d)", "", note) for note in self.notes]
        data = Path(self.data).name if Path(self.data).is_absolute() else self.data
        return self.model_copy(update={"data": data, "notes": notes})

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, as plain values for JSON."""
        return self.model_dump(exclude_unset=True)


class LogRecord(BaseModel):
    """A line of log.jsonl. What was not measured is not set; a strategy's own metrics are extra keys."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, int | float | None]

    step: Count
    epoch: int | None = None
    loss: float | None = None  # mean training loss since the previous line; None if all steps were bad
    images_per_s: float | None = None
    pool_per_s: float | None = None  # samples per second while the newest pool was drawn
    fid: float | None = None
    seconds: float | None = None  # since this process began to train, everything included
    # Of 256 random samples of the averaged weights, in search features:
    samples_to_data: float | None = None  # mean distance of a sample to its nearest data point
    held_out_to_samples: float | None = None  # mean distance of a held-out picture to its nearest sample
    spread: float | None = None  # of the styles of the averaged weights; see `train.calibrate`
    # Of the newest selection:
    refreshed: float | None = None  # share of the data points that got a new latent code
    accepted: int | None = None  # samples of the pool that could be selected
    rejected: int | None = None  # samples of the pool that were too close to a data point
    rejected_share: float | None = None
    relaxed: int | None = None  # selections so far in which every sample was rejected
    distinct: float | None = None  # share of the selected samples that are distinct
    most_shared: int | None = None  # the most data points that share one sample
    nearest: float | None = None  # mean distance of a data point to its selected sample
    # How well selection and prior are aligned, see `Misalignment.metrics`:
    misaligned_latents: float | None = None
    misaligned_distances: float | None = None
    misaligned_theory: float | None = None
    random: float | None = None  # mean distance of a random sample to its nearest data point
    bad_steps: int | None = None  # steps so far whose gradients were not finite
    memory_mb: int | None = None  # peak memory so far, in MiB

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, as plain values for JSON."""
        return self.model_dump(exclude_unset=True)


class TrainerState(BaseModel):
    """trainer.json of a checkpoint: the trainer's state except its tensors."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Count  # training steps done
    rounds: Count = 0  # selections done
    draws: Count = 0  # pools drawn
    relaxed: Count = 0  # rounds in which every sample of the pool was rejected
    loss: float | None = None  # mean training loss, as last logged
    figures: dict[str, int | float] = {}  # metrics of rounds that are not in the log yet
    data: str  # hash of the data points
    environment: dict[str, str] = {}  # names and versions that the results may depend on
    fid: float | None = None  # if measured
    samples_to_data: float | None = None  # as last measured; see `LogRecord`
    held_out_to_samples: float | None = None
    best: float | None = None  # the lowest so far of the distance that decides when to stop
    best_step: Count = 0  # when it was measured
    stale: Count = 0  # measurements since then
    sha256: dict[str, str]  # SHA-256 sums of the checkpoint's files; see `runs.checkpoint`

    @model_validator(mode="after")
    def _check_counters(self) -> Self:
        if not max(self.draws, self.relaxed) <= self.rounds <= self.step + 1:
            raise ValueError("step, rounds, draws and relaxed do not agree with each other")
        return self
