"""RS-IMLE: rejection sampling of the pool (Vashist, Peng, Li, ECCV 2024, Algorithm 1)."""

from pydantic import NonNegativeFloat

from imletriton.selection.vanilla import Vanilla


class Rejection(Vanilla):
    """As vanilla, but samples closer than `epsilon` to any data point are left out of the pool."""

    name = "rejection"

    class Parameters(Vanilla.Parameters):
        epsilon: NonNegativeFloat = 0.15  # rejection radius, among search features

    settings: Parameters

    def __init__(self, n: int, settings: Parameters) -> None:
        super().__init__(n, settings)
        self.reject_radius = settings.epsilon
