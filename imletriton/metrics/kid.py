"""The kernel Inception distance, KID (Binkowski et al., ICLR 2018), computed by torch-fidelity."""

from torch import Tensor

SUBSET = 1000  # features in each subset, or all of the smaller set where it has fewer


def kernel_distance(samples: Tensor, data: Tensor) -> tuple[float, float]:
    """Compute the KID: the unbiased squared maximum mean discrepancy under the cubic polynomial kernel.

    Args:
        samples: Features of samples, [m, d], with m at least 2.
        data: Features of data points, [n, d], with n at least 2.

    Returns:
        The mean and the standard deviation over 100 random subsets, always the same ones.

    Raises:
        ValueError: One of the sets has fewer than 2 features.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(len(samples), len(data), SUBSET)
    if size < 2:
        raise ValueError("two sets of at least 2 features are needed")
    result = kid_features_to_metric(samples.double(), data.double(), kid_subset_size=size, verbose=False)
    return result[KEY_METRIC_KID_MEAN], result[KEY_METRIC_KID_STD]
