"""The compiled kernels of a forward pass, except matrix products."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.kernel_protocol import AdapterPart
from loradesk_engine.model.native import library
from loradesk_engine.model.native.library import Matrix, Rows
from loradesk_engine.model.native.matrix import plain_form


@dataclass(frozen=True)
class _PackedAdapters:
    """Adapters as the compiled kernels read them; `held` is the memory that `a` and `b` point to."""

    a: Matrix
    b: ctypes.Array[Matrix]
    held: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.held)


class NativeStep:
    """`StepKernels` on the CPU, in float32."""

    dtype: torch.dtype | None = torch.float32

    def __init__(self, functions: ctypes.CDLL) -> None:
        self._functions = functions

    def add_rms_norm(self, hidden: Tensor, change: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(hidden)
        library.call(
            self._functions.loradesk_add_rms_norm,
            hidden.data_ptr(),
            change.data_ptr(),
            weight.data_ptr(),
            eps,
            out.data_ptr(),
            *hidden.shape,
            library.threads,
        )
        return out

    def silu_product(self, both: Tensor) -> Tensor:
        rows, size = both.shape[0], both.shape[1] // 2
        out = torch.empty(rows, size)
        library.call(
            self._functions.loradesk_silu_product,
            both.data_ptr(),
            both.stride(0),
            out.data_ptr(),
            rows,
            size,
            library.threads,
        )
        return out

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
        rows, heads, dim = q.shape
        cos, sin = tables
        segments = batch.shared.get(NativeStep)
        if segments is None:
            segments = (Rows * len(batch.segments))()
            fill(segments, batch.segments)
            batch.shared[NativeStep] = segments
        out = torch.empty(rows, heads * dim)
        library.call(
            self._functions.loradesk_attend,
            q.data_ptr(), q.stride(0), k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0),
            cos.data_ptr(), sin.data_ptr(), cos.shape[1],
            keys.data_ptr(), values.data_ptr(), keys.stride(0), keys.stride(1),
            ctypes.addressof(segments), len(segments), heads, k.shape[1], dim,
            scale, window or 0, limit or 0.0, out.data_ptr(), library.threads,
        )  # fmt: skip
        return out

    def pack(self, a: Tensor, parts: Sequence[AdapterPart]) -> _PackedAdapters:
        held_a, form_a = plain_form(a)
        forms = [plain_form(part.b) for part in parts]
        for part, (_, form) in zip(parts, forms, strict=True):
            form.input, form.output = part.rank, part.column
        return _PackedAdapters(
            form_a, (Matrix * len(forms))(*(form for _, form in forms)), (held_a, *(held for held, _ in forms))
        )

    def begin_adapters(self, _packed: _PackedAdapters, x: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        return x, factors

    def add_adapters(self, packed: _PackedAdapters, begun: tuple[Tensor, Tensor], y: Tensor) -> None:
        x, factors = begun
        rows = x.shape[0]
        inner = torch.empty(rows, packed.a.rows)
        library.call(
            self._functions.loradesk_adapt,
            x.data_ptr(), x.stride(0), rows, ctypes.addressof(packed.a), factors.data_ptr(),
            factors.stride(0) if factors.shape[0] > 1 else 0, ctypes.addressof(packed.b), len(packed.b),
            inner.data_ptr(), y.data_ptr(), y.stride(0), library.threads,
        )  # fmt: skip


def fill(rows: ctypes.Array[Rows], segments: Sequence[Segment]) -> None:
    """Copy segments to where the kernels read them."""
    for place, segment in zip(rows, segments, strict=True):
        place.slot, place.start = segment.slot, segment.start
        place.length, place.past = segment.length, segment.past


def native_step() -> NativeStep | None:
    """The kernels in the form that is in use, or None: torch does the work."""
    functions = library.library()
    return None if functions is None else _step_of(functions)


@cache
def _step_of(functions: ctypes.CDLL) -> NativeStep:
    return NativeStep(functions)
