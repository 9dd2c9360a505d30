import os
from pathlib import Path

import pytest

from imletriton.errors import InputError
from imletriton.system.checks import check_device, check_range, check_writable


def test_whether_a_folder_can_be_written_to_is_checked_without_a_trace(tmp_path: Path) -> None:
    """So that a process which is killed meanwhile leaves none either."""
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("files without a name cannot be made here")
    before = tmp_path.stat().st_mtime_ns
    check_writable(tmp_path / "new" / "run", "run", "choose another")
    assert tmp_path.stat().st_mtime_ns == before


def test_devices_and_numbers_out_of_range_are_told() -> None:
    for device in (None, "cpu", "cuda", "cuda:1"):
        check_device(device)
    for device in ("gpu", "cuda:128", "cuda:01", ""):
        with pytest.raises(InputError, match=r"`device` .* is not known: use cuda or cpu"):
            check_device(device)
    check_range("n", 1, 1, 5)
    with pytest.raises(InputError, match="`n` must be from 1 to 5, not 6"):
        check_range("n", 6, 1, 5)
