"""What every measurement says of where, when and on which commit it was taken."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).parents[2]


def machine() -> dict[str, Any]:
    """The commit of this work tree, the day and the machine; `load_before` is the load at this very moment."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HOUSE, capture_output=True, text=True, check=True)
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":unknown")
    return {
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpus": os.cpu_count(),
        "cpu": model.partition(":")[2].strip(),
        "memory_kib": int(memory),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
    }
