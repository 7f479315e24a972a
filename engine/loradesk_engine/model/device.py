"""Which device and number type a model is held in."""

from __future__ import annotations

import psutil
import torch

from loradesk_engine.errors import RequestError

SMALL_MODEL = 64_000_000  # parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def available_devices() -> tuple[str, ...]:
    """Names that `choose_device` takes on this machine, best first."""
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        devices.append("mps")
    return (*devices, "cpu")


def choose_device(name: str) -> torch.device:
    """A device by name; `auto` is the first available.

    Raises:
        RequestError: this machine has no such device.
    """
    devices = available_devices()
    if name == "auto":
        return torch.device(devices[0])
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in devices:
        raise RequestError(
            f"There is no device {name!r} here.", field="device", remedy=f"Available: {', '.join(devices)}."
        )
    return torch.device(wanted)


def choose_dtype(name: str, device: torch.device, parameters: int, free_bytes: int) -> torch.dtype:
    """A number type by name. `auto` is bfloat16 on CUDA and MPS; on the CPU float32 while that leaves half of the free
    memory.

    On the CPU float32 decodes as fast as bfloat16 (both wait for memory or for conversion) and prefills three times
    faster.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type != "cpu":
        return torch.bfloat16
    return torch.float32 if parameters * 4 <= free_bytes // 2 else torch.bfloat16


def set_threads(device: torch.device, parameters: int) -> None:
    """Give torch as many threads as pay for a model of this size.

    A small model's products are too short for a second thread to save what its waiting costs, and a busy core beside it
    (the window's own thread is one) makes every product wait: measured 5 to 8 times slower for 8 million parameters.
    """
    small = device.type == "cpu" and parameters < SMALL_MODEL
    torch.set_num_threads(1 if small else psutil.cpu_count(logical=False) or 1)
