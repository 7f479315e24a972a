"""The most memory that a part of the run took."""

from __future__ import annotations

import ctypes

import torch

from loradesk_engine.bench.worker import reset_resident_peak, resident_bytes


class PeakMemory:
    """Counts from its making: on CUDA what torch allocates on the device, on the CPU the resident memory of the process
    (Linux only).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: int | None = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device)
            return
        _give_back_freed()
        if device.type == "cpu" and reset_resident_peak():
            self._start = resident_bytes("VmRSS")

    def taken(self) -> int | None:
        """Bytes at the highest point above those at the start; None where they cannot be known."""
        if self._start is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._start
        peak = resident_bytes("VmHWM")
        return None if peak is None else max(0, peak - self._start)


def _give_back_freed() -> None:
    """Let the allocator return what an earlier model left free: taking it again would not show."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
