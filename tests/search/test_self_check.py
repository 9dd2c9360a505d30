"""The checks that `doctor` runs: that they pass on the CPU, and that they notice what is wrong and say by how much."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imletriton.commands import doctor
from imletriton.distance import feature_ops
from imletriton.search import NearestSearch, self_check
from imletriton.search.self_check import PROBLEMS, check_nearest, check_within, run_check

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", doctor.checks())
def test_the_cpu_agrees_with_float64(name: str) -> None:
    assert run_check(doctor.checks()[name], CPU) == ""


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
    ("problem", "fault", "message"),
    [
        ("one neighbour", lambda s, sq, i: (sq, torch.where(i == i[0], (i + 1) % 501, i)), "not the nearest, by up to"),
        ("float16", lambda s, sq, i: (sq * (1 + 1e-4), i), "squared distances are off by up to 1e-04"),
        ("bfloat16", lambda s, sq, i: (sq * torch.nan, i), "squared distances are off"),
        ("duplicates", lambda s, sq, i: (sq, torch.where(i < 167, i + 172, i)), "ties do not go to the lowest index"),
        ("samples that are not finite", lambda s, sq, i: (sq, i.clone().fill_(-1)), "37 of 37 neighbours are missing"),
    ],
)
def test_a_fault_is_reported(
    problem: str, fault: Callable[..., object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "fault", fault, raising=False)
    monkeypatch.setattr(self_check, "NearestSearch", Wrong)
    assert message in check_nearest(PROBLEMS[problem](), CPU)


def test_samples_that_should_have_been_rejected_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        self_check,
        "NearestSearch",
        lambda queries, reject_radius, k: NearestSearch(queries, None, reject_radius / 2, k),
    )
    assert "samples are admissible instead of 250" in check_nearest(PROBLEMS["a rejection radius"](), CPU)


def test_wrong_pairs_and_sketches_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    within, sketch = self_check.within, feature_ops.sketched_features
    monkeypatch.setattr(self_check, "within", lambda queries, samples, radius: within(queries, samples, radius * 0.9))
    monkeypatch.setattr(feature_ops, "sketched_features", lambda *arguments: sketch(*arguments) * 1.01)
    assert check_within(CPU) == "37 of 37 counts of pairs are wrong"
    assert doctor.check_sketches(CPU) == "off by 1e-02"


def test_a_check_that_fails_is_a_disagreement() -> None:
    def fails(device: torch.device) -> str:
        raise RuntimeError("no kernel image\nand more")

    assert run_check(fails, CPU) == "RuntimeError: no kernel image"
