"""The block and its gradients under Triton's interpreter, or on the GPU where one is."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from imletriton.generator import Generator
from imletriton.generator.blocks import Block
from imletriton.generator.decoders.vdvae import DecoderBlock
from imletriton.kernels import small_block as module
from imletriton.kernels import small_block_tiles as tiles
from imletriton.kernels.launch import generation
from imletriton.kernels.small_block import small_block, small_block_maps, small_block_pays, small_block_reference
from imletriton.kernels.small_block_map_gradients import small_block_map_gradients
from imletriton.kernels.small_block_weight_gradients import small_block_weight_gradients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter holds bfloat16 as integers, multiplies these and cuts off what it should round: mend it."""
    multiply, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *others: object) -> TensorHandle:
        return multiply(self, widened(a), widened(b), *others)

    def cast_impl(self: InterpreterBuilder, value: TensorHandle, dtype: tl.dtype) -> TensorHandle:
        if (value.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, value, dtype)
        rounded = torch.from_numpy(np.ascontiguousarray(value.data)).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(rounded, tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "cast_impl", cast_impl)


def inputs(b: int, channels: int, middle: int, low: int, factor: int, seed: int = 0) -> list[Tensor]:
    """x, scale, shift, four weights and four biases; scale and shift are views of one tensor, as in AdaIN."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE)

    x = randn(b, channels, low, low).contiguous(memory_format=torch.channels_last)
    kernel = 3 if low * factor > 2 else 1
    shapes = [(middle, channels, 1), (middle, middle, kernel), (middle, middle, kernel), (channels, middle, 1)]
    weights = [randn(o, i, k, k) / (i * k * k) ** 0.5 for o, i, k in shapes]
    weights = [w.contiguous(memory_format=torch.channels_last) for w in weights]
    return [x, *randn(b, 2 * channels).chunk(2, 1), *weights, *(randn(o) for o, _, _ in shapes)]


def run(function: object, leaves: list[Tensor], factor: int) -> list[Tensor]:
    """The result, and the gradients of all leaves from a fixed gradient of the result."""
    leaves = [v.detach().requires_grad_() for v in leaves]
    x, scale, shift, *parameters = leaves
    out = function(x, scale, shift, parameters[:4], parameters[4:], factor)  # type: ignore[operator]
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def errors(results: list[Tensor], expected: list[Tensor]) -> list[float]:
    """The greatest error of each, relative to its greatest value, where that is not just rounding around 0."""
    pairs = zip(results, expected, strict=True)
    return [float((r.double() - e).abs().max() / e.abs().max().clamp_min(1e-2)) for r, e in pairs]


@pytest.mark.parametrize(
    ("b", "channels", "middle", "low", "factor", "offset"),
    [
        (3, 20, 5, 1, 1, 0),
        (1, 20, 5, 2, 1, 0),
        (2, 7, 3, 3, 1, 1000),
        (3, 20, 5, 4, 1, 0),
        (1, 40, 17, 8, 1, 0),
        (1, 16, 4, 16, 1, 1000),
        (3, 20, 5, 1, 4, 0),
        (1, 5, 1, 1, 2, 0),
        (1, 20, 5, 4, 2, 0),
    ],
)
def test_the_block_and_all_its_gradients_are_those_of_float64(
    b: int, channels: int, middle: int, low: int, factor: int, offset: int
) -> None:
    leaves = inputs(b, channels, middle, low, factor)
    leaves[0] += offset
    results = run(small_block, leaves, factor)
    expected = run(small_block_reference, [v.double() for v in leaves], factor)
    assert max(errors(results, expected)) < (2e-3 if offset or DEVICE.type == "cuda" else 1e-5)  # a GPU has TF32
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert [r.dtype for r in results] == [torch.float32] * len(results)


@pytest.mark.parametrize(("low", "factor"), [(1, 1), (1, 4), (4, 1), (8, 1), (4, 2)])
def test_it_is_the_decoders_block_and_no_further_from_float64_in_bfloat16(low: int, factor: int) -> None:
    torch.manual_seed(0)
    resolution = low * factor
    block = DecoderBlock(Block(resolution, low if factor > 1 else None), 20, 5, depth=1).to(DEVICE)
    x, styles = torch.randn(2, 20, low, low, device=DEVICE), torch.randn(2, 2, 20, device=DEVICE)
    names = [f"convs.{k}.{kind}" for kind in ("weight", "bias") for k in range(4)]

    def parts(x: Tensor, scale: Tensor, shift: Tensor, weights: list[Tensor], biases: list[Tensor], _: int) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, [*weights, *biases], strict=True)), (x, scale, shift))

    parameters = [block.get_parameter(name).detach() for name in names]
    leaves = [x, *styles.unbind(1), *parameters]
    exact = run(small_block_reference, [v.double() for v in leaves], factor)
    assert max(errors(run(parts, leaves, factor), exact)) < 1e-3  # the reference is the decoder's block
    with torch.autocast(DEVICE.type, torch.bfloat16):
        fused, unfused = run(small_block, leaves, factor), run(parts, leaves, factor)
    assert fused[0].dtype == torch.bfloat16 == unfused[0].dtype
    for ours, theirs in zip(errors(fused, exact), errors(unfused, exact), strict=True):
        assert ours < 1.5 * theirs + 4e-3
    low_precision = [v.bfloat16() if k in (0, *range(3, 11)) else v for k, v in enumerate(leaves)]
    results = run(small_block, low_precision, factor)
    assert [r.dtype for r in results[1:]] == [v.dtype for v in low_precision]
    expected = run(small_block_reference, [v.double() for v in low_precision], factor)
    assert max(errors(results, expected)) < 3e-2


def test_results_repeat_bit_by_bit_however_the_phases_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = inputs(3, 20, 5, 2, 2)
    once = run(small_block, leaves, 2)
    twice = run(small_block, leaves, 2)
    monkeypatch.setattr(tiles, "MOST_TILES", 0)  # a launch a phase, a program a tile
    apart = run(small_block, leaves, 2)
    for results in (twice, apart):
        assert all(torch.equal(a, b) for a, b in zip(once, results, strict=True))


def test_layouts_do_not_matter() -> None:
    leaves = inputs(1, 20, 5, 4, 1)
    wide = torch.randn(1, 20, 4, 8, device=DEVICE)
    wide[..., ::2] = leaves[0]
    others = [wide[..., ::2], *(v.t().contiguous().t() for v in leaves[1:3]), *(v.contiguous() for v in leaves[3:])]
    for a, b in zip(run(small_block, leaves, 1), run(small_block, others, 1), strict=True):
        assert torch.equal(a, b)


def test_no_samples_give_no_maps_and_no_gradients() -> None:
    out, grad_x, grad_scale, grad_shift, *grads = run(small_block, inputs(0, 20, 5, 2, 2), 2)
    assert out.shape == (0, 20, 4, 4)
    assert grad_x.shape == (0, 20, 2, 2)
    assert grad_scale.shape == grad_shift.shape == (0, 20)
    assert not any(g.any() for g in grads)


def test_torch_compile_knows_the_operators_and_makes_one_graph() -> None:
    x, scale, shift, *parameters = (v.requires_grad_() for v in inputs(2, 6, 3, 2, 1))
    arguments = (x, scale, shift, parameters[:4], parameters[4:], 1, torch.float32)
    torch.library.opcheck(small_block_maps, arguments)
    out, adain, hidden = (v.detach() for v in small_block_maps(*arguments))
    opcheck = partial(torch.library.opcheck, test_utils=("test_schema", "test_faketensor"))
    x, scale, *parameters = (v.detach() for v in (x, scale, *parameters))
    opcheck(small_block_map_gradients, (out, x, scale, parameters[:4], adain, hidden))
    grad_hidden = small_block_map_gradients(out, x, scale, parameters[:4], adain, hidden)[3]
    opcheck(small_block_weight_gradients, (out, adain, hidden, grad_hidden, parameters[:4], parameters[4:]))

    def block(x: Tensor, *others: object) -> Tensor:
        return x if small_block_pays(x, 2) else small_block(x, *others)

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    leaves = inputs(2, 6, 3, 2, 1)
    for a, b in zip(run(small_block, leaves, 1), run(compiled, leaves, 1), strict=True):
        assert torch.equal(a, b)


def test_phases_of_few_tiles_share_a_launch() -> None:
    def launches(tiles_of_phase: list[int]) -> list[tuple[int, int, int]]:
        made: list[tuple[int, int, int]] = []
        tiles.launch_phases(lambda *launch: made.append(launch), tiles_of_phase)
        return made

    assert launches([3, 1, 1, 1, 3]) == [(0, 5, 1)]
    assert launches([6, 1, 1, 1, 3]) == [(0, 1, 6), (1, 5, 1)]
    assert launches([1, 1, 1, 0, 6]) == [(0, 4, 1), (4, 5, 6)]
    assert launches([12, 12, 0, 24]) == [(0, 1, 12), (1, 2, 12), (3, 4, 24)]
    assert launches([6, 3, 12, 12, 48]) == [(0, 1, 6), (1, 2, 3), (2, 3, 12), (3, 4, 12), (4, 5, 48)]


def test_it_is_used_only_where_it_was_measured_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(4, 3, 2, 2, dtype=torch.bfloat16, device=DEVICE)
    assert not small_block_pays(x)
    monkeypatch.setattr(module, "largest_batch", lambda _, resolution: {4: 4}.get(resolution, 0))
    assert small_block_pays(x, factor=2)
    assert not small_block_pays(x)
    assert not small_block_pays(x.repeat(2, 1, 1, 1), factor=2)
    assert not small_block_pays(x.float(), factor=2)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert small_block_pays(x.float(), factor=2)


def test_the_measurements_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "generation", lambda _: "hopper")
    card = torch.device("cuda")
    assert module.largest_batch(card, 4) == 0
    monkeypatch.setitem(module.PAYS, "hopper", {4: 32})
    assert module.largest_batch(card, 4) == 32
    assert module.largest_batch(card, 8) == 0
    assert module.largest_batch(torch.device("cpu"), 4) == 0


@triton.jit
def gelu_kernel(x_ptr, gelu_ptr, slope_ptr):  # type: ignore[no-untyped-def]
    offs = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    x = tl.load(x_ptr + offs)
    tl.store(gelu_ptr + offs, tiles.gelu(x))
    tl.store(slope_ptr + offs, tiles.gelu_slope(x))


def test_gelu_and_its_slope_are_as_near_as_float32_comes() -> None:
    x = torch.linspace(-14, 14, 4096, device=DEVICE)
    ours, slope = torch.empty_like(x), torch.empty_like(x)
    gelu_kernel[(4,)](x, ours, slope)
    exact = x.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    scale = x.double().abs().clamp_min(1)
    assert ((ours.double() - expected).abs() / scale).max() < 2e-7
    assert ((slope.double() - expected_slope).abs()).max() < 3e-7


@pytest.mark.gpu
def test_the_decoder_uses_the_small_block_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Generator(latent_dim=32, mapping_layers=2, width=64, blocks="1x2,4m1,4x2,8m4,8x1,16m8").to(DEVICE)
    z = torch.randn(4, 32, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        expected = model(z)
        monkeypatch.setitem(module.PAYS, generation(DEVICE), {1: 4, 4: 4, 8: 4})
        found = model(z)
    assert not torch.equal(found, expected)  # other kernels round in another order
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
