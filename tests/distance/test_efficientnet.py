"""The trained network of `bands`, against its definition: unfolded, in float64."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.distance import Bands, efficientnet
from imletriton.errors import InputError

WEIGHTS = next(Path(find_spec(efficientnet.PACKAGE).submodule_search_locations[0]).rglob("*.pth"))  # type: ignore
BLOCKS = [(1, 16, False), (2, 24, False), (1, 24, True), (2, 40, False), (1, 40, True)]  # stride, channels, shortcut


def reference(images: Tensor) -> list[Tensor]:
    # The package has the weights as a pickled file only.
    weights = {name: w.double() for name, w in torch.load(WEIGHTS, weights_only=True).items() if w.is_floating_point()}

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        kernel, side = weights[f"{conv}.weight"], x.shape[-1]
        total = max(0, (-(-side // stride) - 1) * stride + kernel.shape[-1] - side)  # as TensorFlow pads
        ends = total // 2, total - total // 2
        x = F.conv2d(F.pad(x, ends * 2), kernel, stride=stride, groups=x.shape[1] if kernel.shape[1] == 1 else 1)
        names = "running_mean", "running_var", "weight", "bias"
        return F.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names), eps=1e-3)

    x = images.double()
    if x.shape[-1] >= 64:
        x = (
            x[..., : x.shape[-1] // 2 * 2, : x.shape[-1] // 2 * 2]
            .unflatten(3, (-1, 2))
            .unflatten(2, (-1, 2))
            .mean((3, 5))
        )
    x = F.interpolate(x, scale_factor=2, mode="bilinear")
    x, maps = layer(x, "_conv_stem", "_bn0", 2).clamp(0, 6), []
    for k, (stride, channels, shortcut) in enumerate(BLOCKS):
        block, y = f"_blocks.{k}", x
        if k:
            y = layer(y, f"{block}._expand_conv", f"{block}._bn0").clamp(0, 6)
        y = layer(y, f"{block}._depthwise_conv", f"{block}._bn1", stride).clamp(0, 6)
        y = layer(y, f"{block}._project_conv", f"{block}._bn2")
        assert y.shape[1] == channels
        x = x + y if shortcut else y
        maps.append(x)
    return [maps[0], maps[2], maps[4]]


@pytest.mark.parametrize("side", [16, 33, 64, 71, 128])
def test_it_is_the_network_that_was_trained(side: int) -> None:
    images = torch.rand(2, 3, side, side) * 2 - 1
    found = efficientnet.EfficientNet()(images)
    for ours, theirs in zip(found, reference(images), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)  # values up to 60


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (1, 1), (64, 100)])
def test_images_of_any_shape_have_features(size: tuple[int, int]) -> None:
    first, _, last = efficientnet.EfficientNet()(torch.zeros(1, 3, *size))
    shown = [side // 2 for side in size] if size[0] >= 64 else [*size]
    assert [*first.shape[2:]] == shown
    assert [*last.shape[2:]] == [-(-side // 4) for side in shown]


def test_bands_add_the_difference_that_it_sees_and_save_none_of_it() -> None:
    x, y = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    distance = Bands(network_weight=2.0, network="efficientnet")
    expected = torch.zeros(3, dtype=torch.float64)
    for a, b in zip(reference(x), reference(y), strict=True):
        expected += (F.normalize(a, dim=1, eps=1e-3) - F.normalize(b, dim=1, eps=1e-3)).square().sum(1).mean((1, 2)) / 3
    added = distance.loss(x, y) - Bands().loss(x, y)
    torch.testing.assert_close(added.double(), 2 * expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(distance.loss(x, distance.target(y)), distance.loss(x, y))
    assert not distance.state_dict()
    grey = torch.zeros(1, 3, 64, 64, requires_grad=True)
    (distance.loss(grey, y[:1]).sum() + distance.loss(grey, grey.detach()).sum()).backward()
    assert grey.grad is not None
    assert grey.grad.isfinite().all()


def test_what_is_wrong_with_its_weights_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r"needs weights from a Python package: install no-such-package\."):
        efficientnet.EfficientNet()
    (tmp_path / "damaged_weights").mkdir()
    (tmp_path / "damaged_weights/__init__.py").touch()
    (tmp_path / "damaged_weights/net.pth").write_bytes(WEIGHTS.read_bytes()[:5000])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(efficientnet, "PACKAGE", "damaged_weights")
    with pytest.raises(InputError, match=r"net\.pth is damaged: install the package damaged-weights anew\."):
        efficientnet.EfficientNet()
