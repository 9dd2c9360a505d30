"""What torchrun tells each process that it starts, by environment variables. Needs no PyTorch."""

import os
import socket


def is_first() -> bool:
    """Whether this process is the one that writes files and prints messages; true without torchrun."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """The number of processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def machines() -> int:
    """The number of machines that train together."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def local_rank() -> int | None:
    """The number of this process among those that torchrun started on this machine; None without torchrun."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


def processes_here() -> int:
    """The number of processes that train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def starts_again() -> bool:
    """Whether torchrun starts the processes once more where one of them fails."""
    done, most = (int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return done < most


def job() -> str:
    """What identifies the torchrun job of this process; the same after torchrun has restarted it. Empty without one.

    This is the job's `rdzv_id`; where the user has given none, torchrun makes one up or, for several machines without a
    rendezvous backend, says "none". Then the torchrun process stands for the job.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()}" if name == "none" else name
