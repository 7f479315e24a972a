"""Fused kernels: several of torch's operations in one.

On a GPU they are Triton kernels, where Triton works (it needs a C compiler at run time), and run in captured graphs
only: outside a graph, launching one costs the host more than several of torch's. On the CPU they are compiled from C
(`model/native`) and compute in float32. Everything also runs on torch's operations alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import torch

from loradesk_engine.model.kernel_protocol import StepKernels

logger = logging.getLogger(__name__)

MAX_ROWS = 64
"""Maximum number of rows in a decoding step of the Triton kernels: X-LoRA has at least two for each of 32 sequences."""


@cache
def usable(device: torch.device) -> bool:
    """Whether Triton compiles and runs a kernel on this device."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        from loradesk_engine.model.kernels.norm import add_rms_norm

        ones = torch.ones(1, 16, device=device)
        add_rms_norm(ones.clone(), None, ones[0], 1e-6)
    except Exception:  # no compiler, no driver, an old GPU: whatever it is, torch does the work then
        logger.warning("Triton cannot be used on %s: torch computes instead", device, exc_info=True)
        return False
    return True


def step_kernels(device: torch.device, dtype: torch.dtype) -> StepKernels | None:
    """The kernels for models on this device in this type; None: torch does the work.

    Raises:
        SettingError: `LORADESK_KERNELS` asks for what cannot run on this CPU.
    """
    if usable(device):
        return _triton_step()
    if device.type == "cpu" and dtype == torch.float32:
        from loradesk_engine.model.native.step import native_step

        return native_step()
    return None


@cache
def _triton_step() -> StepKernels:
    from loradesk_engine.model.kernels.step import TritonStep

    return TritonStep()


_thread = threading.local()


@contextlib.contextmanager
def used(step: StepKernels) -> Iterator[None]:
    """Within this, and in this thread, the model's parts use these kernels."""
    before = in_use()
    _thread.step = step
    try:
        yield
    finally:
        _thread.step = before


def in_use() -> StepKernels | None:
    """The kernels that the caller is within `used` of."""
    return getattr(_thread, "step", None)
