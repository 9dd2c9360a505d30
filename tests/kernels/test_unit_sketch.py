"""The kernel under Triton's interpreter, or on the GPU where one is."""

import pytest
import torch

from imletriton.distance import feature_ops as fused
from imletriton.distance.projection import CountSketch

pytest.importorskip("triton")

from imletriton.kernels import unit_sketch as module
from imletriton.kernels.unit_sketch import unit_sketch, unit_sketch_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sketch_of(shape: tuple[int, ...], k: int) -> CountSketch:
    return CountSketch(shape[1] * shape[2] * shape[3], k, 3, row=k // shape[1] * shape[1]).to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "k"),
    [((1, 1, 1, 1), 1), ((3, 5, 7, 3), 16), ((2, 64, 6, 6), 200), ((2, 30, 5, 5), 33), ((1, 3, 2, 2), 64)],
)
def test_a_layer_is_sketched_as_its_unit_features_are(shape: tuple[int, ...], k: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = torch.randn(shape, device=DEVICE).relu().to(dtype)
    layer[0, :, 0, 0] = 0  # a position where nothing fires
    weight, sketch = torch.rand(shape[1], device=DEVICE), sketch_of(shape, k)
    sketched = unit_sketch(layer, weight, sketch.shift, sketch.sign, sketch.row, sketch.out_dim)
    expected = sketch(fused.unit_features(layer.double(), weight).float())
    torch.testing.assert_close(sketched, expected, rtol=1e-5, atol=1e-5)
    reference = unit_sketch_reference(layer, weight, sketch.shift, sketch.sign, sketch.row, sketch.out_dim)
    torch.testing.assert_close(sketched, reference, rtol=1e-5, atol=1e-5)


def test_the_layout_does_not_matter_nor_how_rows_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.randn(2, 4, 9, 9, device=DEVICE)
    weight, sketch = torch.rand(4, device=DEVICE), sketch_of((2, 4, 9, 9), 10)
    arguments = weight, sketch.shift, sketch.sign, sketch.row, sketch.out_dim
    sketched = unit_sketch(layer, *arguments)
    assert torch.equal(unit_sketch(layer.contiguous(memory_format=torch.channels_last), *arguments), sketched)
    assert torch.equal(unit_sketch(layer, *arguments), sketched)
    monkeypatch.setattr(module, "BLOCK_R", 4)
    torch.testing.assert_close(unit_sketch(layer, *arguments), sketched)


def test_no_samples_give_no_sketches() -> None:
    sketch = sketch_of((0, 4, 3, 3), 10)
    empty = torch.empty(0, 4, 3, 3, device=DEVICE)
    assert unit_sketch(
        empty, torch.ones(4, device=DEVICE), sketch.shift, sketch.sign, sketch.row, sketch.out_dim
    ).shape == (0, 10)


def test_torch_compile_knows_its_result_without_running_it() -> None:
    sketch = sketch_of((2, 4, 3, 3), 10)
    arguments = torch.randn(2, 4, 3, 3, device=DEVICE), torch.ones(4, device=DEVICE)
    torch.library.opcheck(unit_sketch.custom_op, (*arguments, sketch.shift, sketch.sign, sketch.row, sketch.out_dim))
