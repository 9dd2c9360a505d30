import urllib.error
import warnings
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch

from imletriton.data import load_points
from imletriton.distance import LPIPS, Bands, Distance, Euclidean, Pixels, as_float
from imletriton.errors import InputError
from imletriton.sections import DistanceConfig
from imletriton.training.build import make_distance

FACES = load_points("faces", 32)
WITH_NETWORK = {"kind": "bands", "network_weight": 0.3}
WITH_EFFICIENTNET = WITH_NETWORK | {"network": "efficientnet"}
LPIPS_RANDOM = {"kind": "lpips", "backbone": "alex", "weights": "random"}


def distance(
    normalize: bool = False, dim: int = 800, size: int = 32, search: str = "features", **kind: Any
) -> Distance:
    keys = {"kind": "pixels", "weights": "random", "projection_dim": dim, "search": search, "normalize": normalize}
    return make_distance(DistanceConfig.model_validate(keys | kind), (3, size, size), seed=0)


@pytest.mark.parametrize("backbone", ["alex", "squeeze", pytest.param("vgg", marks=pytest.mark.slow)])
def test_lpips_is_the_lpips_packages_plus_pixels(backbone: str) -> None:
    ours = LPIPS(backbone, 0.1, pretrained=False, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    theirs.net.load_state_dict(ours.network.state_dict())
    x, y = as_float(FACES[:4]), as_float(FACES[4:8])
    expected = theirs(x, y)[:, 0, 0, 0] + 0.1 * (x - y).square().mean((1, 2, 3))
    torch.testing.assert_close(ours.loss(x, y), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [LPIPS_RANDOM, {"kind": "pixels"}, {"kind": "bands"}, WITH_NETWORK, WITH_EFFICIENTNET])
def test_every_distance_is_zero_on_itself_positive_elsewhere_and_symmetric(kind: dict[str, Any]) -> None:
    d = distance(**kind)
    with torch.no_grad():
        assert d.loss(FACES[:3], FACES[:3]).tolist() == [0, 0, 0]
        forth, back = d.loss(FACES[:3], FACES[3:6]), d.loss(FACES[3:6], FACES[:3])
    assert forth.shape == (3,)
    assert (forth > 0).all()
    torch.testing.assert_close(forth, back)


@pytest.mark.parametrize("kind", [LPIPS_RANDOM, {"kind": "pixels"}])
def test_search_features_estimate_the_loss(kind: dict[str, str]) -> None:
    d = distance(**kind)
    a, b = d.features(FACES[:40]), d.features(FACES[40:80])
    assert a.shape == (40, 800)
    with torch.no_grad():
        ratio = (a - b).square().sum(1) / d.loss(FACES[:40], FACES[40:80])
    assert (ratio.mean() - 1).abs() < 0.1


@pytest.mark.parametrize("size", [(5, 9), (16, 16), (33, 20), (70, 64)])
def test_bands_compare_a_laplacian_pyramid_robustly(size: tuple[int, int]) -> None:
    """Against the definition, in float64: bands of each image on its own, and their differences."""

    def bands(x: torch.Tensor) -> list[torch.Tensor]:
        if x.shape[-1] < 8:
            return [x]
        coarser = torch.nn.functional.avg_pool2d(x, 2)
        return [x - torch.nn.functional.interpolate(coarser, x.shape[2:], mode="bilinear"), *bands(coarser)]

    def local_energy(band: torch.Tensor) -> torch.Tensor:
        if band.shape[3] >= 64:  # an alternating pattern has no energy
            band = (band[..., 1:, 1:] + band[..., :-1, 1:] + band[..., 1:, :-1] + band[..., :-1, :-1]) / 4
        padded = torch.nn.functional.pad(band, (1, 1, 1, 1))
        return (padded.unfold(2, 4, 2).unfold(3, 4, 2).square().mean((4, 5)) + 1e-4).sqrt()

    x, y = torch.rand(2, 3, 3, *size, dtype=torch.float64) * 2 - 1
    pairs = list(zip(bands(x), bands(y), strict=True))
    each = [((a - b).square() + 2**-16).sqrt().mean((1, 2, 3)) - 2**-8 for a, b in pairs]
    energies = [(local_energy(a) - local_energy(b)).abs().mean((1, 2, 3)) for a, b in pairs[:-1]]
    expected = (sum(each[:-1]) + sum(energies) + 2 * each[-1]) / (len(each) + len(energies) + 1)
    found = Bands().loss(x.float(), Bands().embed(y.float()))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(Bands().loss(x.float(), y.float()), found)


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (33, 20)])
def test_bands_add_the_difference_that_an_untrained_network_sees(size: tuple[int, int]) -> None:
    """Against the definition, in float64 and without convolutions."""
    x, y = torch.rand(2, 3, 3, *size, dtype=torch.float64) * 2 - 1
    distance, expected, maps = Bands(network_weight=2.0), torch.zeros(3, dtype=torch.float64), [x, y]
    for kernel in (distance.kernel0, distance.kernel1, distance.kernel2):
        windows = [torch.nn.functional.unfold(m, 3, padding=1, stride=2) for m in maps]
        sides = [(side + 1) // 2 for side in maps[0].shape[2:]]
        flat = [(kernel.double().flatten(1) @ w).clamp(min=0) for w in windows]
        unit_x, unit_y = (m / m.norm(dim=1, keepdim=True).clamp(min=1e-3) for m in flat)
        expected += (unit_x - unit_y).square().sum(1).mean(1) / 3
        maps = [m.unflatten(2, sides) for m in flat]
    added = distance.loss(x.float(), y.float()) - Bands().loss(x.float(), y.float())
    torch.testing.assert_close(added, 2 * expected.float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(distance.loss(x.float(), distance.target(y.float())), distance.loss(x.float(), y.float()))


def test_the_network_of_bands_has_finite_gradients_where_it_sees_nothing() -> None:
    black, grey = torch.full((1, 3, 16, 16), -1.0), torch.zeros(1, 3, 16, 16, requires_grad=True)
    loss = Bands(network_weight=1.0).loss(grey, black).sum() + Bands(network_weight=1.0).loss(grey, grey.detach()).sum()
    loss.backward()
    assert grey.grad is not None
    assert grey.grad.isfinite().all()


def test_the_pixels_can_be_searched_while_features_are_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    d = distance(search="pixels", **LPIPS_RANDOM)
    monkeypatch.setattr(d, "embed", lambda points: pytest.fail("the network need not look at what is searched"))
    a, b = d.features(FACES[:40]), d.features(as_float(FACES[40:80]))
    pixels = (as_float(FACES[:40]) - as_float(FACES[40:80])).square().sum((1, 2, 3))
    assert a.shape == (40, 800)
    assert ((a - b).square().sum(1) / pixels - 1).abs().mean() < 0.1
    small = distance(search="pixels", size=32, dim=3072, normalize=True, **LPIPS_RANDOM)
    exact = torch.nn.functional.normalize(as_float(FACES[:5]).flatten(1))
    torch.testing.assert_close(small.features(FACES[:5], embedding=()), exact)


def test_a_kept_embedding_gives_the_same_loss() -> None:
    d = distance(**LPIPS_RANDOM)
    x = as_float(FACES[:4])
    with torch.no_grad():
        assert torch.equal(d.loss(x, d.embed(FACES[4:8])), d.loss(x, FACES[4:8]))


def test_targets_kept_in_bfloat16_change_a_loss_less_than_the_network_in_bfloat16_does() -> None:
    d = distance(**LPIPS_RANDOM)
    x = as_float(FACES[:8])
    with torch.no_grad():
        exact, embedding = d.loss(x, FACES[8:16]), d.embed(FACES[8:16])
        assert d.target(FACES[8:16], embedding) == embedding
        d.use_bfloat16()
        embedding = d.embed(FACES[8:16])
        pixels, *features = d.target(FACES[8:16], embedding)
        assert pixels.dtype == torch.float32
        assert {part.dtype for part in features} == {torch.bfloat16}
        rounded, kept = d.loss(x, embedding), d.loss(x, (pixels, *features))
    assert kept.dtype == torch.float32
    assert (kept - rounded).norm() < 0.5 * (rounded - exact).norm()
    torch.testing.assert_close(kept, rounded, rtol=1e-3, atol=0)


def test_normalised_features_have_length_one() -> None:
    torch.testing.assert_close(distance(normalize=True).features(FACES).norm(dim=1), torch.ones(100))


def test_a_small_embedding_is_searched_as_it_is() -> None:
    d = distance(size=4, dim=48)
    assert not d.projections
    assert d.features(FACES[:2, :, :4, :4]).shape == (2, 48)


@pytest.mark.parametrize("kind", [LPIPS_RANDOM, {"kind": "pixels"}])
def test_the_loss_has_finite_gradients_even_for_flat_images(kind: dict[str, str]) -> None:
    samples = torch.zeros(2, 3, 32, 32)
    samples[1] = -1
    samples.requires_grad_()
    distance(**kind).loss(samples, FACES[:2]).sum().backward()
    assert samples.grad is not None
    assert samples.grad.isfinite().all()
    assert samples.grad.abs().sum() > 0


def test_random_weights_follow_the_seed() -> None:
    one, same, other = (LPIPS("squeeze", 0.1, False, seed).embed(FACES[:1])[1] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_pixels_sees_layout_before_detail() -> None:
    """Noise of a size costs less than a shift of brightness of that size."""
    x = torch.zeros(1, 3, 32, 32)
    noise = torch.randn(1, 3, 32, 32).sign()
    pixels = Pixels()
    assert pixels.loss(x + noise, x) < 0.5 * pixels.loss(x + 1, x)
    assert pixels.loss(x + 1, x).item() == pytest.approx(1)


def test_euclidean_is_the_squared_distance_of_points() -> None:
    d = Euclidean()
    assert d.loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])).tolist() == [25]


def test_weights_that_cannot_be_downloaded_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError) as caught:
        distance(kind="lpips", weights="pretrained")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in message
    assert str(tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth") in message


def test_a_file_that_does_not_hold_the_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    file.parent.mkdir(parents=True)
    for content in (b"", b"<html>not found</html>"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"alexnet-owt-7be5be79\.pth does not hold the alex weights: remove it"):
            distance(kind="lpips", backbone="alex", weights="pretrained")


@pytest.mark.weights
def test_pretrained_lpips_matches_the_package() -> None:
    path = Path(torch.hub.get_dir()) / "checkpoints" / "vgg16-397923af.pth"
    if not path.is_file():
        pytest.skip(f"no VGG16 weights at {path}")
    ours = LPIPS("vgg", 0.0, pretrained=True, seed=0)
    theirs = lpips.LPIPS(net="vgg", verbose=False)
    x, y = as_float(FACES[:4]), as_float(FACES[4:8])
    torch.testing.assert_close(ours.loss(x, y), theirs(x, y)[:, 0, 0, 0], rtol=1e-4, atol=1e-6)
