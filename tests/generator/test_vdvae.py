import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.generator.decoders.vdvae import EPS, adain_gelu


def instance_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.instance_norm(x, eps=EPS) * scale[:, :, None, None] + shift[:, :, None, None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 7, 7), (2, 130, 9, 9)])
def test_adain_and_its_gradients_are_instance_norms(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape) * 3 + 10).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(shape[:2], requires_grad=True) for _ in range(2))
    y, activated = adain_gelu(x, scale, shift, normalise=True)
    wide = [v.detach().double().requires_grad_() for v in (x, scale, shift)]
    expected = instance_norm(*wide)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(activated, F.gelu(y))
    up = torch.randn(shape)
    found = torch.autograd.grad(y + activated, (x, scale, shift), up)
    right = torch.autograd.grad(expected + F.gelu(expected), wide, up.double())
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_adain_rounds_only_its_results_to_bfloat16() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 16, 16) + 30
    scale, shift = torch.ones(2, 6), torch.zeros(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, activated = adain_gelu(x.bfloat16(), scale, shift, normalise=True)
    assert y.dtype == activated.dtype == torch.bfloat16
    expected = instance_norm(x.bfloat16().double(), scale.double(), shift.double())
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=2**-8)
