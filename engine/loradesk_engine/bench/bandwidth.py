"""How fast the memory is that the weights are read from: the floor of a decoding step."""

from __future__ import annotations

import time

import torch

CUDA_BYTES = 4 * 2**30
CPU_BYTES = 2**30
QUICK_BYTES = 64 * 2**20
REPEATS = 7


def memory_speed(device: torch.device, *, quick: bool = False) -> tuple[str, list[float]]:
    """What was measured, and bytes a second of each repeat.

    On an accelerator a large copy on the device, bytes read and written; on the CPU the sum of a large array, bytes
    read, with the threads that torch uses at the moment.
    """
    if device.type == "cpu":
        values = torch.ones((QUICK_BYTES if quick else CPU_BYTES) // 4)
        return "read (sum of a large array)", [values.nbytes / _timed_sum(values) for _ in range(REPEATS)]
    source = torch.empty(QUICK_BYTES if quick else CUDA_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    _timed_copy(target, source)
    return "device copy (read and written)", [2 * source.nbytes / _timed_copy(target, source) for _ in range(REPEATS)]


def _timed_sum(values: torch.Tensor) -> float:
    started = time.perf_counter()
    values.sum()
    return time.perf_counter() - started


def _timed_copy(target: torch.Tensor, source: torch.Tensor) -> float:
    synchronize(source.device)
    started = time.perf_counter()
    target.copy_(source)
    synchronize(source.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
