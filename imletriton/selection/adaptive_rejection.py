"""Both methods at once: thresholds that tighten, and a pool without samples that are close already.

RS-IMLE calls its idea orthogonal to Adaptive IMLE's and leaves the combination open.
"""

from imletriton.selection import parameters
from imletriton.selection.adaptive import Adaptive
from imletriton.selection.rejection import Rejecting


class AdaptiveRejection(Rejecting, Adaptive):
    """As adaptive, but samples closer than `epsilon` to any data point are left out of the pool."""

    name = "adaptive-rejection"
    Parameters = parameters.AdaptiveRejection
    settings: parameters.AdaptiveRejection
