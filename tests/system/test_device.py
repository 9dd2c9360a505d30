"""One rule decides where bfloat16 is used."""

from collections.abc import Iterator

import pytest
import torch

from imletriton.search import bounds
from imletriton.system import device
from imletriton.system.device import wants_bfloat16

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    device._processor_multiplies_bfloat16.cache_clear()
    yield
    device._processor_multiplies_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_bf16": False, "amx_bf16": False}, False),
    ],
)
def test_training_and_search_take_bfloat16_on_the_same_processors(
    flags: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    monkeypatch.setattr(device, "_product_seconds", lambda dtype: pytest.fail("the flags tell"))
    assert (bounds.QuerySide(torch.randn(4, 64)).levels[0] is bounds.BFLOAT16) == fast
    assert wants_bfloat16("auto", CPU) == fast
    assert wants_bfloat16("bfloat16", CPU)
    assert not wants_bfloat16("float32", CPU)


@pytest.mark.parametrize("fast", [True, False])
def test_where_flags_do_not_tell_a_measurement_does(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5 if fast else 4.0}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "aarch64"}, raising=False)
    monkeypatch.setattr(device, "_product_seconds", seconds.__getitem__)
    assert wants_bfloat16("auto", CPU) == fast


def test_a_product_is_measured_in_seconds() -> None:
    assert 0 < device._product_seconds(torch.float32) < 10


def test_a_gpus_convolutions_are_chosen_by_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    device.set_up(CPU)
    assert not torch.backends.cudnn.benchmark
    device.set_up(torch.device("cuda"))
    assert torch.backends.cudnn.benchmark


def test_freed_memory_is_kept_on_any_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    device.keep_freed_memory()
    monkeypatch.setattr(device.ctypes, "CDLL", lambda name: object())  # one without mallopt
    device.keep_freed_memory()
