"""A sample of the campaign; `make faults` does all of it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import damage
import full_disks
import fuzzing
import harness
import pytest
from kills import Kills


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults") / "runs"
    harness.make_runs(place)
    return place


@pytest.fixture(scope="session")
def kills(base: Path) -> Kills:
    return Kills(base)


@pytest.mark.parametrize("name", ["fit", *harness.WORK, "data get"])
def test_what_was_killed_ends_as_if_it_had_not_been(kills: Kills, name: str) -> None:
    assert kills.case(name, 0) == []


def test_what_was_asked_to_stop_ends_as_if_it_had_not_been(kills: Kills) -> None:
    assert kills.stop(0) == []


@pytest.mark.parametrize(("file", "kind", "name"), random.Random(0).sample(damage.cases(), 16))
def test_damage_is_told_in_a_sentence_and_harms_nothing_else(base: Path, file: str, kind: str, name: str) -> None:
    assert damage.case(base, 0, file, kind, name) == []


@pytest.mark.parametrize("name", full_disks.COMMANDS)
def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(base: Path, name: str) -> None:
    assert full_disks.case(base, name, 0) == []


@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_hostile_inputs_are_told_in_a_sentence(base: Path, kind: Callable[[Path], Any]) -> None:
    met, problems = fuzzing.case(base, kind, 40, 0)
    assert problems == []
    assert met
