import torch

from imletriton.distance import Pixels, as_float
from imletriton.generator import Generator
from imletriton.metrics.backtracking import backtrack


def test_a_generator_finds_its_own_samples_again() -> None:
    torch.manual_seed(0)
    model = Generator(latent_dim=4, mapping_layers=1, width=8, blocks="4x1,8m4", bottleneck=1.0).eval()
    images, distance = model.sample(5, seed=7), Pixels()
    told: list[int] = []
    _, made, found = backtrack(model, images, distance, starts=3, steps=60, progress=told.append)
    torch.testing.assert_close(found, distance.loss(as_float(made), images), rtol=1e-4, atol=1e-6)
    random = distance.loss(as_float(model.sample(5, seed=8)), images)
    assert (found < 0.1 * random.mean()).all()
    assert told[-1] == 5 * 60
    one = backtrack(model, images, distance, starts=1, steps=5).distance
    assert (one > found).all()
    assert torch.equal(backtrack(model, images, distance, starts=1, steps=5).distance, one)
