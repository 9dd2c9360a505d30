"""The checks that `doctor` runs: that they pass on the CPU, and that they notice what is wrong and say by how much."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imletriton.commands import agreement
from imletriton.commands.agreement import CHECKS, PROBLEMS, check_nearest, check_sketches, check_within, run_check
from imletriton.search import NearestSearch

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CHECKS)
def test_the_cpu_agrees_with_float64(name: str) -> None:
    assert run_check(name, CPU) == ""


class Wrong(NearestSearch):
    """A search with a fault."""

    fault: Callable[[NearestSearch, Tensor, Tensor], tuple[Tensor, Tensor]]

    @property
    def sq_distance(self) -> Tensor:
        return type(self).fault(self, super().sq_distance, super().index)[0]

    @property
    def index(self) -> Tensor:
        return type(self).fault(self, super().sq_distance, super().index)[1]


@pytest.mark.parametrize(
    ("problem", "fault", "told"),
    [
        ("one neighbour", lambda s, sq, i: (sq, torch.where(i == i[0], (i + 1) % 501, i)), "not the nearest, by up to"),
        ("float16", lambda s, sq, i: (sq * (1 + 1e-4), i), "squared distances are off by up to 1e-04"),
        ("bfloat16", lambda s, sq, i: (sq * torch.nan, i), "squared distances are off"),
        ("duplicates", lambda s, sq, i: (sq, torch.where(i < 167, i + 172, i)), "ties do not go to the lowest index"),
        ("samples that are not finite", lambda s, sq, i: (sq, i.clone().fill_(-1)), "37 of 37 neighbours are missing"),
    ],
)
def test_a_fault_is_told(
    problem: str, fault: Callable[..., object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "fault", fault, raising=False)
    monkeypatch.setattr(agreement, "NearestSearch", Wrong)
    assert told in check_nearest(PROBLEMS[problem](), CPU)


def test_samples_that_should_have_been_rejected_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        agreement, "NearestSearch", lambda queries, reject_radius, k: NearestSearch(queries, None, reject_radius / 2, k)
    )
    assert "samples are admissible instead of 250" in check_nearest(PROBLEMS["a rejection radius"](), CPU)


def test_wrong_pairs_and_sketches_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    within, sketch = agreement.within, agreement.sketched_features
    monkeypatch.setattr(agreement, "within", lambda queries, samples, radius: within(queries, samples, radius * 0.9))
    monkeypatch.setattr(agreement, "sketched_features", lambda *arguments: sketch(*arguments) * 1.01)
    assert check_within(CPU) == "37 of 37 counts of pairs are wrong"
    assert check_sketches(CPU) == "off by 1e-02"


def test_a_check_that_fails_is_a_disagreement(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> str:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setitem(CHECKS, "float16", fails)
    assert run_check("float16", CPU) == "RuntimeError: no kernel image"
