"""Adaptive thresholds and rejection together.

RS-IMLE calls its idea orthogonal to Adaptive IMLE's and does not evaluate the combination.
"""

from imletriton.selection.adaptive import Adaptive
from imletriton.selection.parameters import AdaptiveRejectionParameters
from imletriton.selection.rejection import Rejecting


class AdaptiveRejection(Rejecting, Adaptive):
    """As `Adaptive`, but samples closer than `epsilon` to any data point are rejected."""

    name = "adaptive-rejection"
    Parameters = AdaptiveRejectionParameters
    settings: AdaptiveRejectionParameters
