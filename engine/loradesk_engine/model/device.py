"""Which device and number type a model is held in, and for which context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from loradesk_engine.errors import RequestError
from loradesk_engine.formats.config import ModelConfig

DEFAULT_CONTEXT = 8192  # a model's own limit may be a million tokens, and a cache of that size nobody asked for
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


def choose_context(wanted: int | None, config: ModelConfig, file: Path) -> int:
    """Tokens that a sequence may hold.

    Args:
        wanted: None takes the model's own, up to `DEFAULT_CONTEXT`.
        file: the checkpoint, for the error message.

    Raises:
        RequestError: more than the model was made for.
    """
    if wanted is None:
        # longrope stretches short conversations too once a long one is possible: only who asks for one gets that
        native = config.rope.original_context if config.rope.kind == "longrope" else DEFAULT_CONTEXT
        return min(config.context, native, DEFAULT_CONTEXT)
    if not 2 <= wanted <= config.context:
        raise RequestError(
            f"A context of {wanted:,} tokens is asked for, the model was made for {config.context:,}.",
            file=file,
            field="context",
            remedy=f"Choose 2 to {config.context:,}.",
        )
    return wanted


def free_memory(device: torch.device) -> int:
    """Bytes that a load may still take on a device. On the CPU the file cache counts as free: it gives way."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(psutil.virtual_memory().available)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this, torch computes on the calling thread alone.

    For many short steps: where another program has a core, its threads wait for each other at every one of them.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_threads(device: torch.device, parameters: int) -> None:
    """Give torch as many threads as pay for a model of this size.

    A small model's products are too short for a second thread to save what its waiting costs, and a busy core beside it
    (the window's own thread is one) makes every product wait: measured 5 to 8 times slower for 8 million parameters.
    """
    small = device.type == "cpu" and parameters < SMALL_MODEL
    torch.set_num_threads(1 if small else psutil.cpu_count(logical=False) or 1)
