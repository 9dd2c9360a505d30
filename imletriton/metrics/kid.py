"""The kernel Inception distance (Binkowski et al., ICLR 2018), by torch-fidelity."""

from torch import Tensor

SUBSET = 1000  # features compared at once, or as many as there are


def kernel_distance(samples: Tensor, data: Tensor) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy under the cubic kernel: mean and deviation over 100 subsets.

    samples [m, d], data [n, d], m and n at least 2. The same subsets every time.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(len(samples), len(data), SUBSET)
    if size < 2:
        raise ValueError("two sets of at least 2 features are needed")
    found = kid_features_to_metric(samples.double(), data.double(), kid_subset_size=size, verbose=False)
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD]
