"""How long this process has been running."""

import contextlib
import os
import time
from pathlib import Path

STARTED = 19  # index of the start time in /proc/self/stat, after the process's name


def process_age() -> float:
    """Return the seconds since this process was started, before Python loaded; 0 where that cannot be read."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):  # Linux has both
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[STARTED])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0
