import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton import fused
from imletriton.fused import adain_gelu, feature_distance, sketched_features, unit_features
from imletriton.projection import CountSketch


def gradients(result: Tensor, upstream: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(result, inputs, upstream.to(result.dtype)))


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, eps=fused.EPS) * scale[:, :, None, None] + shift[:, :, None, None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("large", [1, 10**9], ids=["by-sample", "at-once"])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 7, 7), (2, 130, 9, 9)])
def test_adain_and_its_gradients_are_instance_norms(
    shape: tuple[int, ...], large: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "LARGE", large)
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 + 10).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(shape[:2], requires_grad=True) for _ in range(2))
    y, activated = adain_gelu(x, scale, shift, normalise=True)
    up = torch.randn(shape)
    wide = [v.detach().double().requires_grad_() for v in (x, scale, shift)]
    expected = instance_norm(*wide)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(activated, F.gelu(y))
    found = gradients(y + activated, up, x, scale, shift)
    right = gradients(expected + F.gelu(expected), up, *wide)
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("large", [1, 10**9], ids=["by-sample", "at-once"])
def test_adain_rounds_only_its_results_to_bfloat16(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LARGE", large)
    torch.manual_seed(0)
    x = torch.randn(2, 6, 16, 16) + 30
    scale, shift = torch.ones(2, 6), torch.zeros(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, activated = adain_gelu(x.bfloat16(), scale, shift, normalise=True)
    assert y.dtype == activated.dtype == torch.bfloat16
    expected = instance_norm(x.bfloat16().double(), scale.double(), shift.double())
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 7, 5, 5), (2, 64, 4, 4)])
def test_feature_distance_and_its_gradient_are_those_of_unit_features(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = torch.randn(shape).relu().to(dtype)
    if shape[2] > 1:
        layer[0, :, 0, 0] = 0  # a position where nothing fires
    layer = layer.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, up = torch.rand(shape[1]), torch.randn(shape[0])
    target = unit_features(torch.randn(shape).relu(), weight)
    wide = layer.detach().double().requires_grad_()
    flat = wide.permute(0, 2, 3, 1).flatten(1, 2)
    unit = flat / flat.square().sum(2, keepdim=True).clamp_min(1e-20).sqrt()
    expected = ((unit * weight).flatten(1) - target).square().sum(1)
    found = feature_distance(layer, weight, target)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (ours,), (theirs,) = gradients(found, up, layer), gradients(expected, up, wide)
    tolerance = 2**-6 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_features_are_sketched_as_if_they_had_been_stored() -> None:
    layer, weight = torch.randn(3, 6, 5, 5).relu(), torch.rand(6)
    sketch = CountSketch(150, 16, seed=1, row=12)
    torch.testing.assert_close(sketched_features(layer, weight, sketch), sketch(unit_features(layer, weight)))
