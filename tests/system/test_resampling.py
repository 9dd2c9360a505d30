"""Bilinear enlargement: the form for CUDA against PyTorch's, and that its gradients repeat."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imletriton.system import resampling


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("old", "new"), [((1, 1), (4, 4)), ((3, 5), (6, 10)), ((4, 4), (9, 8)), ((16, 16), (32, 32))])
def test_matmuls_enlarge_as_pytorch_does(
    old: tuple[int, int], new: tuple[int, int], layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_needs_matmuls", lambda x: True)
    x = torch.randn(2, 3, *old, generator=torch.Generator().manual_seed(0)).to(memory_format=layout).requires_grad_()
    expected = F.interpolate(x.double(), new, mode="bilinear")
    with torch.autocast("cpu"):  # which must not make the matmuls coarse
        found = resampling.enlarge(x, new)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=layout) or old == (1, 1)  # which is in both layouts
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)
    assert resampling.enlarge(x.bfloat16(), new).dtype == torch.bfloat16


@pytest.mark.gpu
def test_gradients_are_the_same_in_each_run_on_a_card() -> None:
    x = torch.randn(8, 64, 64, 64, device="cuda", requires_grad=True)
    weight = torch.randn(8, 64, 128, 128, device="cuda")

    def gradient() -> Tensor:
        return torch.autograd.grad((resampling.enlarge(x, (128, 128)) * weight).sum(), x)[0]

    assert all(torch.equal(gradient(), gradient()) for _ in range(10))
