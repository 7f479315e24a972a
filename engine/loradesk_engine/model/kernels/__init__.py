"""Triton kernels for decoding on a GPU: what torch would do in several launches, in one.

They are used in captured graphs, where Triton is there and works (it needs a C compiler at run time). Everything has a
torch path beside it, which is also what runs outside of graphs: there a launch of Triton's costs the host more than
several of torch's. Each file imports Triton at its top and is imported only once `in_use` says so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import torch

MAX_ROWS = 32
"""Most rows of a decoding step that the kernels take."""


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
        return False
    return True


_thread = threading.local()


@contextlib.contextmanager
def used() -> Iterator[None]:
    """Within this, and in this thread, the model's parts use the kernels."""
    _thread.used = True
    try:
        yield
    finally:
        _thread.used = False


def in_use() -> bool:
    """Whether the caller is within `used`."""
    return getattr(_thread, "used", False)
