"""The contents of a run's files as types: trainer.json of a checkpoint, eval.json, and the lines of log.jsonl."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=0, lt=2**53)]  # as many as any other JSON reader holds exactly


class Title(NamedTuple):
    """How a metric is written for people: its name, and whether higher or lower values are better."""

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
    """The value of one metric and how it was measured. Fields that do not apply to a metric are not set."""

    value: float
    deviation: float | None = None  # standard deviation of the value (KID)
    samples: int | None = None  # samples that were compared
    reference: float | None = None  # the value of real pictures (authenticity)
    pictures: int | None = None  # training pictures (authenticity), or those that were reconstructed (backtracking)
    starts: int | None = None  # ... random latent codes that each reconstruction starts from
    steps: int | None = None  # ... steps of optimisation from each


class Evaluation(BaseModel):
    """The result of `evaluate`, as eval.json holds it and as the command line prints it with JSON."""

    run: str | None  # the run's folder; None where a folder of pictures was measured without a run
    step: int | None  # of the checkpoint; None where the samples come from elsewhere
    samples: str  # the folder of the samples, or "seed 0" and so on where a generator made them
    count: int  # samples
    data: str  # the source of the pictures that they were compared with
    pictures: int  # how many those are
    resolution: int  # pixels a side
    weights: Literal["pretrained", "random"]  # of the networks that the metrics look through
    metrics: dict[str, Metric]  # by the names in METRICS
    published: dict[str, dict[str, float]]  # {method: {metric: value}} of the papers, for the same pictures
    notes: list[str]  # sentences that a reader of the metrics must know
    imletriton: str  # the version that measured
    written: str | None  # the eval.json that holds this; None where it was not written

    @field_validator("metrics")
    @classmethod
    def _check_names(cls, metrics: dict[str, Metric]) -> dict[str, Metric]:
        if unknown := metrics.keys() - METRICS.keys():
            raise ValueError(f"{min(unknown)} is not the name of a metric")
        return metrics

    @property
    def subject(self) -> str:
        """The name of the model or folder that was measured."""
        if self.step is not None:
            return f"{self.run}, step {self.step}"
        return self.run if self.run and self.samples.startswith("seed ") else self.samples

    @property
    def copies(self) -> str | None:
        """What the authenticity says, for a reader who does not know the word; None where it was not measured."""
        if (found := self.metrics.get("authenticity")) is None:
            return None
        text = (
            f"{found.value:.0%} of {found.samples:,} samples are new pictures rather than copies: each of them differs "
            "more from the training picture that it resembles most than that picture does from its own nearest other."
        )
        if found.reference is None or found.pictures is None:
            return text
        text += f" Of the {found.pictures} training pictures, each compared with the others, {found.reference:.0%} do."
        if found.value < found.reference - found.pictures**-0.5:  # two standard errors of a share of about a half
            return f"{text} So the samples follow the training pictures more closely than new pictures of their kind would."
        return f"{text} So the samples are no closer to the training pictures than new pictures of their kind would be."

    def for_others(self) -> Self:
        """Return it without the folders in which the pictures and checkpoints lie, which others need not know."""
        notes = [re.sub(r"(?<!\S)/(.*/)?(?=[^/]+/checkpoints/\d)", "", note) for note in self.notes]
        data = Path(self.data).name if Path(self.data).is_absolute() else self.data
        return self.model_copy(update={"data": data, "notes": notes})

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, as plain values for JSON."""
        return self.model_dump(exclude_unset=True)


class LogRecord(BaseModel):
    """One line of log.jsonl. Values that were not measured are not set; a strategy's own metrics are extra keys."""

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, int | float | None]

    step: Count
    epoch: int | None = None
    loss: float | None = None  # mean training loss since the line before; None while no step was good
    images_per_s: float | None = None
    pool_per_s: float | None = None  # samples a second while the newest pool was drawn
    fid: float | None = None
    seconds: float | None = None  # since this process began to train, with all that it did besides steps
    # Of 256 random samples of the averaged weights, which are what a user gets, in search features:
    samples_to_data: float | None = None  # mean distance of a sample to its nearest data point
    held_out_to_samples: float | None = None  # mean distance of a held-out picture to its nearest sample
    spread: float | None = None  # how far the styles of the averaged weights are spread; see `train.calibrate`
    # Of the newest selection:
    refreshed: float | None = None  # share of the data points that got a new latent code
    accepted: int | None = None  # samples of the pool that may be selected
    rejected: int | None = None  # samples of the pool that are too close to a data point
    rejected_share: float | None = None
    relaxed: int | None = None  # selections so far in which every sample was rejected
    distinct: float | None = None  # share of the selected samples that differ from each other
    most_shared: int | None = None  # data points that share one sample, at most
    nearest: float | None = None  # mean distance of a data point to its selected sample
    # How selection and prior are aligned:
    misaligned_latents: float | None = None
    misaligned_distances: float | None = None
    misaligned_theory: float | None = None
    random: float | None = None  # mean distance of a random sample to its nearest data point
    # Of the training:
    bad_steps: int | None = None  # steps so far without finite gradients
    memory_mb: int | None = None  # peak memory so far, in MiB

    def to_json(self) -> dict[str, Any]:
        """The fields that are set, as plain values for JSON."""
        return self.model_dump(exclude_unset=True)


class TrainerState(BaseModel):
    """What trainer.json of a checkpoint holds besides tensors. Earlier versions lack what has a default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Count  # training steps done
    rounds: Count = 0  # selections done
    draws: Count = 0  # pools drawn
    relaxed: Count = 0  # rounds in which every sample of the pool was rejected
    loss: float | None = None  # mean training loss, as last logged
    figures: dict[str, int | float] = {}  # metrics of rounds that the log does not have yet
    data: str  # the hash of the data points
    environment: dict[str, str] = {}  # names and versions that the results may depend on
    fid: float | None = None  # where it was measured
    samples_to_data: float | None = None  # as last measured; see `LogRecord`
    held_out_to_samples: float | None = None
    best: float | None = None  # the least of those that decide when to stop
    best_step: Count = 0  # when that was measured
    stale: Count = 0  # measurements since then
    sha256: dict[str, str] = {}  # SHA-256 sums of the checkpoint's files; see `runs.checkpoint`

    @model_validator(mode="after")
    def _check_counters(self) -> Self:
        if not max(self.draws, self.relaxed) <= self.rounds <= self.step + 1:
            raise ValueError("step, rounds, draws and relaxed do not agree with each other")
        return self
