"""Passes of a decoder that are recorded once and then made again by one call into the library.

A pass makes some hundred calls, and each takes Python and torch several microseconds: a third of a small model's time.
But from token to token nearly all of their arguments are the same. So the calls of a pass are kept, with the memory
that it wrote to, and what differs (tokens, scalings, how long sequences are) is put where they read it.

A pass can be recorded if the kernels do all of it; where torch computes something, passes stay as they are. What comes
out is the same to the last bit.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from loradesk_engine.model.batch import Batch
from loradesk_engine.model.cache import KVCache
from loradesk_engine.model.native import library
from loradesk_engine.model.native.library import Rows
from loradesk_engine.model.native.step import NativeStep, fill

MOST_ROWS = 16  # of a pass; with more of them the calls themselves take longer
MOST_BYTES = 32 * 2**20  # that a pass may write to, beside the cache
ALIGNED = 64  # bytes; where vectors are stored fastest
KEPT = 8  # recordings of the same adapters, by how many rows and sequences there are

FUNCTIONS = ("multiply", "adapt", "add_rms_norm", "silu_product", "attend", "add_bias")
"""Those that can be recorded, in the order of `Function` in replay.c."""

ALLOCATING = ("empty", "empty_like")
ASKING = ("data_ptr", "stride", "size", "dim", "numel", "is_contiguous", "__len__")
LOOKING = ("__get__", "__getitem__", "split", "view", "unflatten", "float", "to", "contiguous")
"""What a pass may do with torch: set memory aside, and look at tensors and parts of them. To copy is work, too."""

Layers = Callable[[Tensor, Tensor, Batch], Tensor]
"""hidden and that normalised [rows, hidden], of a batch -> what the last norm gives."""


class Call(ctypes.Structure):
    """`Call` of replay.c."""

    _fields_ = (("function", ctypes.c_int64), ("arguments", ctypes.c_int64 * 24))


class Passes:
    """The passes of one decoder.

    A form of them is recorded when it comes for the second time. The recordings with adapters that are no more go with
    those. All of them write to the same memory.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._base = _Base()
        self._forms: MutableMapping[object, OrderedDict[tuple[int, ...], _Form]] = weakref.WeakKeyDictionary()

    def run(
        self, hidden: Tensor, x: Tensor, batch: Batch, cache: KVCache, tables: Sequence[Tensor], layers: Layers
    ) -> Tensor:
        """What `layers` gives. tables: of the rotations, which it reads."""
        delta = batch.delta
        adapters = self._base if delta is None else delta.form
        if adapters is None or batch.slots is not None or len(x) > MOST_ROWS:
            return layers(hidden, x, batch)
        forms = self._forms.setdefault(adapters, OrderedDict())
        key = (len(x), len(batch.segments), 0 if delta is None else len(delta.factors), library.threads)
        form = forms.get(key)
        if form is None:
            forms[key] = _Form()
            if len(forms) > KEPT:
                forms.popitem(last=False)
            return layers(hidden, x, batch)
        forms.move_to_end(key)
        if form.impossible:
            return layers(hidden, x, batch)
        if form.recording is None or not form.recording.reads(cache, tables):
            if self._memory is None:  # what nobody writes to costs nothing
                self._memory = torch.empty(MOST_BYTES, dtype=torch.uint8)
            form.recording, out = record(hidden, x, batch, cache, tables, layers, self._memory)
            form.impossible = form.recording is None
            return out
        return form.recording.replay(hidden, x, batch)


class _Base:
    """Stands for the adapters where there are none."""


@dataclass
class _Form:
    """Passes with the same adapters and as many rows and sequences."""

    recording: Recording | None = None
    impossible: bool = False


class Recording:
    """A pass that can be made again.

    Args:
        hidden, x, factors, segments: the memory that it reads what differs from.
        out: the part of the memory that it writes its result to.
        calls: of the library's functions, in their order.
        functions: the library that they are of.
        read: what else they read, and that may be replaced by other memory.
    """

    def __init__(
        self,
        hidden: Tensor,
        x: Tensor,
        factors: Tensor | None,
        segments: ctypes.Array[Rows],
        out: Tensor,
        calls: Sequence[Call],
        functions: ctypes.CDLL,
        read: tuple[object, ...],
    ) -> None:
        self._hidden, self._x, self._factors, self._segments, self._out = hidden, x, factors, segments, out
        self._calls = (Call * len(calls))(*calls)
        self._functions = functions
        self._read = read

    def reads(self, cache: KVCache, tables: Sequence[Tensor]) -> bool:
        """Whether it reads this cache and these tables; when they grow, others take their place."""
        return all(one is other for one, other in zip(self._read, _read(cache, tables), strict=True))

    def replay(self, hidden: Tensor, x: Tensor, batch: Batch) -> Tensor:
        """The pass with this input."""
        self._hidden.copy_(hidden)
        self._x.copy_(x)
        if self._factors is not None and batch.delta is not None:
            self._factors.copy_(batch.delta.factors)
        fill(self._segments, batch.segments)
        self._functions.loradesk_replay(ctypes.addressof(self._calls), len(self._calls))
        return self._out.clone()


def record(
    hidden: Tensor, x: Tensor, batch: Batch, cache: KVCache, tables: Sequence[Tensor], layers: Layers, memory: Tensor
) -> tuple[Recording | None, Tensor]:
    """Make a pass and record it.

    Args:
        memory: uint8 [bytes], for what the pass writes to beside the cache.

    Returns:
        The recording, and what `layers` gave. None where it cannot be made again: torch computed a part of it, or the
        memory was not enough.
    """
    hidden, x, delta = hidden.clone(), x.clone(), batch.delta
    factors = None if delta is None else delta.factors.clone()
    segments = (Rows * len(batch.segments))()
    fill(segments, batch.segments)
    if delta is not None and factors is not None:
        delta = delta.with_factors(factors)
    work = _Work(memory)
    with work, library.recorded(work.add):
        out = layers(hidden, x, replace(batch, delta=delta, shared={NativeStep: segments}))
    if not work.is_all:
        return None, out.clone()
    read = _read(cache, tables)
    return Recording(hidden, x, factors, segments, out, work.calls, library.functions(), read), out.clone()


def _read(cache: KVCache, tables: Sequence[Tensor]) -> tuple[object, ...]:
    return (cache.keys, cache.values, *tables)


class _Work(TorchFunctionMode):
    """What is done within it, by the kernels and by torch. New tensors get parts of `memory`.

    Attributes:
        calls: of the kernels.
        is_all: whether the kernels did all of it, and the memory was enough.
    """

    def __init__(self, memory: Tensor) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.is_all = True
        self._memory, self._taken = memory, 0

    def add(self, function: Any, arguments: tuple[Any, ...]) -> None:
        name = function.__name__.removeprefix("loradesk_")
        if name not in FUNCTIONS:
            self.is_all = False
            return
        call = Call(FUNCTIONS.index(name))
        for place, (kind, value) in enumerate(zip(function.argtypes, arguments, strict=True)):
            call.arguments[place] = _BITS.unpack(_FLOAT.pack(value))[0] if kind is ctypes.c_float else value or 0
        self.calls.append(call)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.__name__
        if name in ALLOCATING:
            return self._part(result)
        if not (name in ASKING or (name in LOOKING and _is_part(result, args[0]))):
            self.is_all = False
        return result

    def _part(self, tensor: Tensor) -> Tensor:
        """A part of the memory that is like this tensor, or the tensor itself where that cannot be."""
        first, last = self._taken, self._taken + tensor.nbytes
        if last > len(self._memory) or not tensor.is_contiguous():
            self.is_all = False
            return tensor
        self._taken = -(-last // ALIGNED) * ALIGNED
        return self._memory[first:last].view(tensor.dtype).view(tensor.shape)


_FLOAT, _BITS = struct.Struct("=f"), struct.Struct("=I")


def _is_part(result: Any, whole: Tensor) -> bool:
    """Whether a tensor, or each of several, lies in the memory of this one; what are no tensors does so, too."""
    results = result if isinstance(result, list | tuple) else [result]
    memory = whole.untyped_storage().data_ptr()
    return all(not isinstance(one, Tensor) or one.untyped_storage().data_ptr() == memory for one in results)
