"""What all benchmarks share: how a time is taken, and the form of a row and of the file of raw numbers."""

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def clock(run: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that a call takes: of CPU, in all threads of this process, and of the wall clock."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def median_row(work: str, variant: str, items: int, times: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return one row of raw numbers.

    Args:
        work: what was done.
        variant: who or what did it.
        items: how many images, trials or commits one measurement handled.
        times: CPU seconds and wall seconds of each measurement.
    """
    cpu, wall = (round(statistics.median(column), 6) for column in zip(*times, strict=True))
    return {"work": work, "variant": variant, "items": items, "cpu_seconds": cpu, "wall_seconds": wall}


def write_json(path: str | Path, rows: list[dict[str, Any]], *packages: str) -> None:
    """Write `{"date", "hardware", "versions", "rows"}`.

    Args:
        path: the file.
        rows: the raw numbers.
        packages: those that take part besides kpipe's own, for "versions".
    """
    names = ("kpipe", "tensorflow", "keras", "numpy", *packages)
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "hardware": describe_hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "rows": rows,
    }
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


def describe_hardware() -> str:
    """Return the number of cores and the name of the processor."""
    names = re.findall(r"model name\s*:\s*(.+)", CPU_INFO.read_text()) if CPU_INFO.exists() else []
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"
