"""What was tried for better pictures and is not in the package: trainers for benchmarks.quality.

Each is here in the form in which docs/quality.md reports it, so that its runs can be made again.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.candidates.losses import ChangedDistance, EqualContrast, GradientTerm, LocalTransport, SearchByBands
from benchmarks.candidates.selections import (
    AlternatingPairs,
    AveragedSelection,
    KeptPools,
    LocalSearch,
    NearPairs,
    OneOfThree,
    OwnRadius,
    ReversePairs,
    SoftTopK,
)
from benchmarks.candidates.steps import Augmented, FadingRate, Muon, ScheduleFree
from imletriton.training.trainer import Trainer

TRAINERS: dict[str, Callable[..., Trainer]] = {
    "local transport 0.1": partial(LocalTransport, weight=0.1),
    "local transport 0.3": partial(LocalTransport, weight=0.3),
    "gradient term": partial(GradientTerm, weight=0.5),
    "network at full resolution": partial(ChangedDistance, network_weight=0.3, strides=(1, 2, 2)),
    "network at full resolution, batch 16": partial(ChangedDistance, network_weight=0.3, strides=(1, 2, 2)),
    "equal contrast": EqualContrast,
    "no energies": partial(ChangedDistance, energy_weight=0.0),
    "first bands": partial(ChangedDistance, energy_weight=0.0),
    "twice the energies": partial(ChangedDistance, energy_weight=2.0),
    "papers' decoder, twice the energies": partial(ChangedDistance, energy_weight=2.0),
    "search by bands": SearchByBands,
    "local search": partial(LocalSearch, tries=8),
    "averaged selection": AveragedSelection,
    "kept pools": partial(KeptPools, times=4),
    "own radius": OwnRadius,
    "one of three": OneOfThree,
    "soft top 3": SoftTopK,
    "reverse pairs": partial(ReversePairs, weight=0.25),
    "near pairs": partial(NearPairs, weight=0.25),
    "vanilla, near pairs": partial(NearPairs, weight=0.25),
    "alternating pairs": partial(AlternatingPairs, weight=0.25),
    "muon": partial(Muon, rate=0.02),
    "fading rate": partial(FadingRate, share=0.3),
    "schedule-free": ScheduleFree,
    "augmentation code": Augmented,
}
