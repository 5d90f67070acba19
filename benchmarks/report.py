"""The form in which every benchmark here writes its raw numbers."""

import json
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def write_json(path: str | Path, rows: list[dict[str, Any]], *others: str) -> None:
    """`{"date", "hardware", "versions", "rows"}`; `others`: packages that take part besides those of kpipe."""
    packages = ("kpipe", "tensorflow", "keras", "numpy", *others)
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    found = {"date": time.strftime("%Y-%m-%d"), "hardware": describe_hardware(), "versions": versions, "rows": rows}
    Path(path).write_text(json.dumps(found, indent=1) + "\n")


def describe_hardware() -> str:
    names = re.findall(r"model name\s*:\s*(.+)", CPU_INFO.read_text()) if CPU_INFO.exists() else []
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"
