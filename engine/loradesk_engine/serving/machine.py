"""What the engine runs on, for the log and for reports: versions, processor, kernels, GPU."""

from __future__ import annotations

import os
import platform
import sys

import psutil

from loradesk_engine.errors import SettingError
from loradesk_engine.units import byte_size


def machine_facts() -> dict[str, str]:
    """Name -> fact, in the order to show them. Of torch only what is imported already is said.

    Never on the GUI thread: a GPU's driver may take its time.
    """
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False)
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.platform()}, {platform.machine()}",
        "processor": f"{processor_name()}, {cores or '?'} cores, {os.cpu_count()} threads",
        "memory": f"{byte_size(memory.total)}, {byte_size(memory.available)} free",
    }
    if "torch" in sys.modules:
        facts |= _torch_facts()
    return facts


def processor_name() -> str:
    """What the processor is called."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _torch_facts() -> dict[str, str]:
    import torch

    from loradesk_engine.model.native.library import form

    try:
        kernels = form()
    except SettingError as problem:
        kernels = str(problem)
    facts = {
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "kernels": kernels,
        "cuda": str(torch.version.cuda or "not built in"),
    }
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            facts[f"gpu {number}"] = f"{found.name}, {byte_size(found.total_memory)}, {found.major}.{found.minor}"
    return facts
