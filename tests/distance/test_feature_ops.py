import torch

from imletriton.distance.feature_ops import sketched_features, unit_features
from imletriton.distance.projection import CountSketch


def test_features_are_sketched_as_if_they_had_been_stored() -> None:
    layer, weight = torch.randn(3, 6, 5, 5).relu(), torch.rand(6)
    sketch = CountSketch(150, 16, seed=1, row=12)
    torch.testing.assert_close(sketched_features(layer, weight, sketch), sketch(unit_features(layer, weight)))
