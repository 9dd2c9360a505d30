"""AdaIN and GELU as kernels, against autograd in float64: on the GPU or, without one, under Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from imletriton.kernels import adain_gelu as kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EPS = 1e-2
SHAPES = [(1, 1, 1, 1), (3, 5, 1, 1), (2, 1, 7, 7), (1, 130, 7, 7), (2, 5, 15, 20)]
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # the interpreter cuts bfloat16 off
Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, scale, shift and gradients of y and g


def problem(*shape: int, dtype: torch.dtype = torch.float32) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x, of_y, of_g = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for _ in range(3))
    scale, shift = (torch.randn(shape[:2], generator=generator).to(DEVICE) for _ in range(2))
    x, of_y, of_g = (v.contiguous(memory_format=torch.channels_last) for v in (x, of_y, of_g))
    return x, scale + 0.5, shift, of_y, of_g


def solve(
    of: Problem, dtype: torch.dtype, operation: Callable[..., tuple[Tensor, Tensor]] = kernels.adain_gelu
) -> list[Tensor]:
    """y, g and the gradients of x, scale and shift."""
    x, scale, shift = (v.detach().requires_grad_() for v in of[:3])
    y, g = operation(x, scale, shift, EPS, dtype)
    return [y, g, *torch.autograd.grad((y, g), (x, scale, shift), (of[3].to(dtype), of[4].to(dtype)))]


def exact(of: Problem) -> list[Tensor]:
    return solve(tuple(v.double() for v in of), torch.float64, kernels.adain_gelu_reference)  # type: ignore[arg-type]


def assert_near(ours: list[Tensor], expected: list[Tensor], tolerance: float = 2e-6) -> None:
    """Each to its tensor's largest value; what is rounded to fewer bits, to that."""
    for mine, its in zip(ours, expected, strict=True):
        assert mine.isfinite().all()
        rounding = max(tolerance, ROUNDING[mine.dtype])
        limit = tolerance * its.abs().max().item() + 1e-6
        torch.testing.assert_close(mine.double(), its, rtol=rounding, atol=limit)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_exact(shape: tuple[int, int, int, int]) -> None:
    of = problem(*shape)
    ours = solve(of, torch.float32)
    assert all(v.is_contiguous(memory_format=torch.channels_last) for v in ours[:3])
    assert_near(ours, exact(of))


@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_dtype_goes_in_and_out(dtype: torch.dtype, output: torch.dtype) -> None:
    x, scale, shift, of_y, of_g = problem(1, 5, 5, 7, dtype=dtype)
    of = x, scale, shift, of_y.to(output), of_g.to(output)
    ours = solve(of, output)
    assert [v.dtype for v in ours] == [output, output, dtype, torch.float32, torch.float32]
    assert_near(ours, exact(of))


def test_gradients_of_two_dtypes() -> None:
    x, scale, shift, of_y, of_g = problem(1, 5, 5, 7)
    _, _, mean, inverse = kernels.normalise(x, scale, shift, EPS, torch.float32)
    ours = kernels.gradients(x, scale, shift, mean, inverse, of_y, of_g.bfloat16())
    assert_near(list(ours), exact((x, scale, shift, of_y, of_g.bfloat16()))[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_common_offset_costs_no_bits(dtype: torch.dtype) -> None:
    x, *rest = problem(1, 5, 15, 20, dtype=dtype)
    of = x + 1e3, *rest
    assert_near(solve(of, torch.float32), exact(of))


def test_the_first_position_may_be_an_outlier() -> None:
    x, *rest = problem(1, 5, 15, 20)
    x[:, :, 0, 0] = torch.tensor([1e4, -1e4, 1e2, -1e2, 0.0], device=DEVICE)
    assert_near(solve((x, *rest), torch.float32), exact((x, *rest)), 1e-5)


@pytest.mark.parametrize("value", [0.0, 7.3, 1e6])
def test_a_constant_channel_gives_the_shift(value: float) -> None:
    of = problem(1, 5, 7, 7)
    of[0][:, 1:3] = value
    ours = solve(of, torch.float32)
    assert torch.equal(ours[0][:, 1:3], of[2][:, 1:3, None, None].expand(-1, -1, 7, 7))
    assert torch.equal(ours[3][:, 1:3], torch.zeros_like(ours[3][:, 1:3]))
    assert_near(ours, exact(of))


def test_the_layout_changes_nothing() -> None:
    of = problem(2, 5, 5, 7)
    expected = solve(of, torch.float32)
    planar = tuple(v.contiguous() for v in of)
    apart = tuple(torch.stack([v, v.flip(0)], -1)[..., 0] for v in of)  # every stride twice as long
    assert not apart[0].is_contiguous() and not apart[0].is_contiguous(memory_format=torch.channels_last)
    chunks = of[0], *torch.cat([of[1], of[2]], 1).chunk(2, 1), *of[3:]  # rows at a stride
    for other in (planar, apart, chunks):
        for mine, its in zip(solve(other, torch.float32), expected, strict=True):
            assert torch.equal(mine, its)
    ours = solve((*of[:3], *(v[:, :, :1, :1].expand_as(v) for v in of[3:])), torch.float32)
    assert_near(ours, exact((*of[:3], *(v[:, :, :1, :1].expand_as(v) for v in of[3:]))))


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_through_one_result_alone(which: int) -> None:
    of = problem(1, 5, 5, 7)
    x, scale, shift = (v.detach().requires_grad_() for v in of[:3])
    y, g = kernels.adain_gelu(x, scale, shift, EPS, torch.float32)
    ours = torch.autograd.grad((y, g)[which], (x, scale, shift), of[3])
    zero = torch.zeros_like(of[3])
    pair = (of[3], zero) if which == 0 else (zero, of[3])
    assert_near(list(ours), exact((*of[:3], *pair))[2:])


def test_gradients_are_differences_of_values() -> None:
    of = problem(1, 5, 5, 7)
    step = [torch.randn(v.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE) for v in of[:3]]

    def value(size: float) -> float:
        y, g = kernels.adain_gelu(*(v + size * s for v, s in zip(of[:3], step, strict=True)), EPS, torch.float32)
        return float((y.double() * of[3] + g.double() * of[4]).sum())

    slope = sum(float((g.double() * s).sum()) for g, s in zip(solve(of, torch.float32)[2:], step, strict=True))
    third = (value(2e-2) - value(-2e-2)) / 4e-2
    assert (4 * (value(1e-2) - value(-1e-2)) / 2e-2 - third) / 3 == pytest.approx(slope, rel=1e-4)


@pytest.mark.filterwarnings("ignore:overflow")  # of squares, in values near 1e30
def test_gelu_is_exact_to_float32() -> None:
    """With one position, y is the shift."""
    shift = torch.cat([torch.linspace(-14, 14, 1001), torch.tensor([-1e30, -40, 0, 40, 1e30])])[None].to(DEVICE)
    one = torch.ones_like(shift)[:, :, None, None]
    y, g, _, _, slope = solve((one, torch.ones_like(shift), shift, 0 * one, one), torch.float32)
    expected = exact((one, torch.ones_like(shift), shift, 0 * one, one))
    assert torch.equal(y[:, :, 0, 0], shift)
    torch.testing.assert_close(g.double(), expected[1], rtol=2e-7, atol=3e-7)
    torch.testing.assert_close(slope.double(), expected[4], rtol=0, atol=4e-7)


def test_how_space_is_split_changes_only_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    of = problem(1, 3, 15, 20)
    expected = solve(of, torch.float32)
    assert kernels.split(1, 3, 300)[0] > 4
    for mine, its in zip(solve(of, torch.float32), expected, strict=True):
        assert torch.equal(mine, its)  # no race
    for name, value, slices in (("PROGRAMS", 1, 1), ("PROGRAMS", 3, 3), ("POSITIONS", 4, 8)):
        with monkeypatch.context() as patch:
            patch.setattr(kernels, name, value)
            assert kernels.split(1, 3, 300)[0] == slices
            assert_near(solve(of, torch.float32), [v.double() for v in expected])


@pytest.mark.parametrize("positions", [1, 15, 16, 17, 49, 300, 4096, 65536, 10**7])
def test_slices_cover_space_and_none_is_empty(positions: int) -> None:
    for samples, channels in ((1, 1), (4, 384), (256, 384), (5000, 130)):
        slices, length = kernels.split(samples, channels, positions)
        assert (slices - 1) * length < positions <= slices * length


def test_no_samples() -> None:
    of = problem(0, 5, 3, 3)
    assert [v.shape for v in solve(of, torch.float32)] == [v.shape for v in (of[0], of[0], *of[:3])]


def test_the_operators_follow_pytorchs_rules() -> None:
    x, scale, shift, of_y, of_g = problem(2, 5, 3, 3)
    torch.library.opcheck(kernels.normalise, (x, scale, shift, EPS, torch.bfloat16))
    _, _, mean, inverse = kernels.normalise(x, scale, shift, EPS, torch.float32)
    torch.library.opcheck(kernels.gradients, (x, scale, shift, mean, inverse, of_y, of_g))


def test_it_compiles_as_one_graph() -> None:
    of = problem(2, 5, 3, 3)

    def loss(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        y, g = kernels.adain_gelu(x * 2, scale, shift, EPS, torch.float32)
        return (y * of[3] + g * of[4]).sum()

    compiled = torch.compile(loss, backend="inductor" if DEVICE.type == "cuda" else "aot_eager", fullgraph=True)
    inputs = [v.detach().requires_grad_() for v in of[:3]]
    eager, ours = (torch.autograd.grad(f(*inputs), inputs) for f in (loss, compiled))
    assert_near(list(ours), [v.double() for v in eager])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4, 384, 256, 256), (3, 384, 1366, 1366)])  # the second: more than 2^31 values
def test_large_maps_on_the_gpu(shape: tuple[int, int, int, int]) -> None:
    x = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=torch.channels_last).normal_(3)
    scale, shift = torch.randn(2, *shape[:2], device=DEVICE)
    ours = solve((x, scale, shift, x, x), torch.bfloat16)
    last = [v[-1:, :64] for v in (x, scale, shift, x, x)]
    expected = solve(tuple(v.float() for v in last), torch.float32, kernels.adain_gelu_reference)  # type: ignore[arg-type]
    assert_near([v[-1:, :64] for v in ours], [v.double() for v in expected], 1e-4)
