import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid.fid import frechet_distance as clean_fids

from imletriton.metrics import frechet_distance


def by_definition(a: torch.Tensor, b: torch.Tensor) -> float:
    x, y = a.double().numpy(), b.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root))


@pytest.mark.parametrize(("n", "m"), [(50, 60), (400, 30)])
def test_it_is_the_definition_where_that_is_well_conditioned(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(n, 8, generator=generator), 2 * torch.randn(m, 8, generator=generator) + 1
    assert frechet_distance(a, b) == pytest.approx(by_definition(a, b), rel=1e-9)
    statistics = [value for x in (a.double().numpy(), b.double().numpy()) for value in (x.mean(0), np.cov(x.T))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid's, of SciPy
        assert frechet_distance(a, b) == pytest.approx(clean_fids(*statistics), rel=1e-6)


def test_few_features_in_many_dimensions_are_no_trouble() -> None:
    a, b = torch.randn(10, 500), torch.randn(7, 500)
    assert frechet_distance(a, a) < 1e-9 * frechet_distance(a, b)
    assert frechet_distance(a, a + 1) == pytest.approx(500)
    assert frechet_distance(a, a[torch.randperm(10)]) < 1e-9
    same = torch.ones(2, 500)
    assert frechet_distance(same, same) == 0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_one_feature_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(torch.ones(1, 4), torch.ones(3, 4))
