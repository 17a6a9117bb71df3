"""Peak resident memory of this process, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_bytes() -> int:
    """Linux counts it per address space: ``ru_maxrss`` there would start with what the parent process had."""
    if Path("/proc/self/status").exists():
        return _line("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Resident memory now; 0 where only the peak is known."""
    return _line("VmRSS") if Path("/proc/self/status").exists() else 0


def reset_peak() -> bool:
    """Let the peak begin anew from what is resident now; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _line(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1]) * 1024
