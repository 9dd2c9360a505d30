"""The environment variables of processes that torchrun starts. Needs no PyTorch."""

import os
import socket


def is_first() -> bool:
    """Whether this process writes files and prints messages; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """The number of processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def machines() -> int:
    """The number of machines that train together."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def local_rank() -> int | None:
    """The number of this process among those on this machine; None without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


def processes_here() -> int:
    """The number of processes that train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def starts_again() -> bool:
    """Whether torchrun restarts the processes if one fails."""
    done, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return done < most


def job() -> str:
    """The id of this process's torchrun job, which survives restarts; empty without one.

    This is the job's `rdzv_id`, which torchrun makes up if the user gives none. For several machines without a
    rendezvous backend, it is "none"; then the torchrun process itself identifies the job.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name
