"""What a run ran on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from loradesk_engine.model.native.library import form


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, memory, accelerator and versions; no names of hosts or users."""
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "kernels": form(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerator": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["accelerator"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return found


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
