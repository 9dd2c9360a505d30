"""How long this process has been running. Needs no PyTorch."""

import contextlib
import os
import time
from pathlib import Path

STARTED = 19  # the place of the start time in /proc/self/stat, after the process's name


def process_age() -> float:
    """Return the seconds since this process was started, before Python loaded anything; 0 if that is not known."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):  # only Linux has both
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[STARTED])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0
