"""Both methods at once: thresholds that tighten, and a pool without samples that are close already.

RS-IMLE calls its idea orthogonal to Adaptive IMLE's and leaves the combination open.
"""

from pydantic import NonNegativeFloat

from imletriton.selection.adaptive import Adaptive


class AdaptiveRejection(Adaptive):
    """As adaptive, but samples closer than `epsilon` to any data point are left out of the pool."""

    name = "adaptive-rejection"

    class Parameters(Adaptive.Parameters):
        epsilon: NonNegativeFloat = 0.15  # rejection radius, among search features

    settings: Parameters

    def __init__(self, n: int, settings: Parameters) -> None:
        super().__init__(n, settings)
        self.reject_radius = settings.epsilon
