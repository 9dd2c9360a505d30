import warnings

import torch

from imletriton.plotting import charts


def test_the_distances_of_ten_thousand_pictures_are_drawn_without_a_warning() -> None:
    distances = torch.rand(10_000, 256, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib's, that looking for a place takes long
        image = charts.distance_distributions("distances", distances.amin(1), distances, 100_000)
    assert image.size == (960, 600)
