"""Kernels: what torch would do in several steps, in one.

On a GPU they are Triton's, in captured graphs, where Triton is there and works (it needs a C compiler at run time): a
launch of Triton's outside of graphs costs the host more than several of torch's. On the CPU they are compiled from C
(`model/native`), in float32. Everything has a torch path beside it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from loradesk_engine.model.batch import Batch

logger = logging.getLogger(__name__)

MAX_ROWS = 64
"""Most rows of a decoding step that Triton's kernels take: X-LoRA has at least two for each of 32 sequences."""


@dataclass(frozen=True)
class AdapterPart:
    """The adapters of one of the linears that read the same input.

    Attributes:
        column: of the output, its first.
        rank: its first among the ranks of all of them.
        b: [columns, ranks]
        aligned: what divides the rank of each adapter.
    """

    column: int
    rank: int
    b: Tensor
    aligned: int


class Laid(Protocol):
    """The adapters of one projection in the kernels' form.

    Attributes:
        nbytes: memory that it takes beside the adapters' own matrices.
    """

    @property
    def nbytes(self) -> int: ...


class StepKernels(Protocol):
    """What there are kernels for. On a GPU each row is a next token of its sequence. The rows of matrices are
    contiguous.

    Attributes:
        dtype: the type they compute in; None: any.
    """

    @property
    def dtype(self) -> torch.dtype | None: ...

    def add_rms_norm(self, hidden: Tensor, change: Tensor, weight: Tensor, eps: float) -> Tensor:
        """hidden += change, in place; returns hidden / rms(hidden) * weight. hidden, change: [rows, size]"""
        ...

    def silu_product(self, both: Tensor) -> Tensor:
        """silu(gate) * up. both: [rows, 2 * size], gate first -> [rows, size]"""
        ...

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        tables: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        batch: Batch,
        scale: float,
        window: int | None,
        limit: float | None,
    ) -> Tensor:
        """`model.attention.attend`, with the rotation's tables: cosines and signed sines, each [positions,
        rotary_dim].
        """
        ...

    def lay_out(self, a: Tensor, parts: Sequence[AdapterPart]) -> Laid:
        """What the next two need to know of the adapters of one projection. a: [ranks of all parts, in]"""
        ...

    def begin_adapters(self, laid: Any, x: Tensor, factors: Tensor) -> Any:
        """What needs only the input. x: [rows, in], factors: [rows or 1, ranks]"""
        ...

    def add_adapters(self, laid: Any, begun: Any, y: Tensor) -> None:
        """y += (x a' * factors) b', in place. y: [rows, out]"""
        ...


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


@cache
def step_kernels(device: torch.device, dtype: torch.dtype) -> StepKernels | None:
    """The kernels for models on this device in this type; None: torch does the work."""
    if usable(device):
        from loradesk_engine.model.kernels.step import TritonStep

        return TritonStep()
    if device.type == "cpu" and dtype == torch.float32:
        from loradesk_engine.model.native.library import library
        from loradesk_engine.model.native.step import NativeStep

        functions = library()
        return None if functions is None else NativeStep(functions)
    return None


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
