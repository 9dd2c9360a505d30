import pytest
import torch

from imletriton.metrics import authenticity, authenticity_of_data


def test_copies_are_told_from_new_samples() -> None:
    training = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    copies = training[:20] + 0.01
    new = training[:20] + 100
    assert authenticity(copies, training) == 0
    assert authenticity(new, training) == 1
    assert authenticity(torch.cat([copies, new, new]), training) == pytest.approx(2 / 3)


@pytest.mark.parametrize("duplicates", [0, 1, 4])
def test_the_authenticity_of_data_leaves_each_point_out_in_turn(duplicates: int) -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    points = torch.cat([points, points[:1].expand(duplicates, -1)])
    alone = [authenticity(points[k : k + 1], points[torch.arange(len(points)) != k]) for k in range(len(points))]
    assert authenticity_of_data(points) == pytest.approx(sum(alone) / len(points))
    assert authenticity_of_data(points[:2]) is None


def test_new_data_is_about_as_authentic_as_the_data_itself() -> None:
    points = torch.randn(2000, 8, generator=torch.Generator().manual_seed(2))
    reference = authenticity_of_data(points[:1000])
    assert reference is not None
    assert 0.4 < reference < 0.6
    assert authenticity(points[1000:], points[:1000]) == pytest.approx(reference, abs=0.06)
