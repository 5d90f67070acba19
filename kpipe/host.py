"""What this machine has: memory that is free or taken, the driver of a GPU."""

import re
import shutil
import subprocess
from pathlib import Path

MEMINFO, CONTAINER = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
STATUS = Path("/proc/self/status")  # getrusage would also tell the peak of the program that has started this one
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def free_memory() -> int | None:
    """Return the bytes that this process can still take; None: unknown."""
    limits = [_available(), _container_limit(), _address_limit()]
    return min((limit for limit in limits if limit is not None), default=None)


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held at a time; None: unknown."""
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return 1024 * int(found[1]) if found else None


def has_nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is installed; under WSL2, only its program shows it."""
    return shutil.which("nvidia-smi") is not None or NVIDIA_DRIVER.exists()


def nvidia_driver_version() -> str | None:
    """Return the version of the NVIDIA driver, as `550.54.15`; None: there is none, or it does not say."""
    try:
        said = NVIDIA_DRIVER.read_text()
    except OSError:  # WSL2
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        try:
            said = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.SubprocessError):
            return None
    found = re.search(r"\b\d{3,}(\.\d+)+\b", said)
    return found[0] if found else None


def _available() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return 1024 * int(found[1]) if found else None


def _container_limit() -> int | None:
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        used = re.search(r"^anon (\d+)$", (CONTAINER / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no container, or "max"
        return None
    return max(0, limit - int(used[1])) if used else limit


def _address_limit() -> int | None:
    """Return what `ulimit -v` leaves to this process."""
    try:
        import resource  # not on Windows

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else max(0, limit - pages * resource.getpagesize())
