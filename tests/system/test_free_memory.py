import resource
from pathlib import Path

import pytest

from imletriton.system import memory

GIB = 2**30


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def test_free_memory_is_part_of_the_machines() -> None:
    assert 0 < memory.free_memory() < resource.getpagesize() * memory.os.sysconf("SC_PHYS_PAGES")


def test_the_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = memory.free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_memory() == pytest.approx(alone / 4, rel=0.2)


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + 2**28, used + 2**28))
    assert memory.free_memory() == pytest.approx(2**28, rel=0.2)


@pytest.mark.parametrize("controllers", ["", "memory"])
def test_the_limits_of_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controllers: str) -> None:
    """Here the group around that of this process has 1 MiB left: 3 are allowed, and 4 used, of which 2 are a cache."""
    limit, used, cache = memory.CGROUP_FILES[controllers]
    outer = tmp_path / controllers / "outer"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    for folder, most in ((outer, 3 * 2**20), (inner, "max")):
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{4 * 2**20}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{cache} {2 * 2**20}\n")
    (tmp_path / "cgroup").write_text(f"2:{controllers}:/outer/inner\n7:cpu:/\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "cgroup")
    assert memory.free_memory() == 2**20


def test_bytes_are_shown_in_a_unit_that_suits_them() -> None:
    assert [memory.size(n) for n in (0, 2**20, GIB, 1234.5 * GIB)] == ["0 MiB", "1 MiB", "1.0 GiB", "1,234.5 GiB"]
