"""The compiled library, in the form that is in use, and its functions' types."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from ctypes import c_float, c_int, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from loradesk_engine.model.native import forms
from loradesk_engine.model.native.sources import digest

logger = logging.getLogger(__name__)

BYTES, HALF_BYTES, FLOAT32, BFLOAT16, FLOAT16, TABLED = range(6)
"""`Kind` of matrix.h."""


class Matrix(ctypes.Structure):
    """`Matrix` of matrix.h."""

    _fields_ = (
        ("data", c_void_p),
        ("table", c_void_p),
        ("rows", c_int64),
        ("columns", c_int64),
        ("input", c_int64),
        ("output", c_int64),
        ("kind", c_int32),
        ("group", c_int32),
        ("lowest", c_int32),
        ("has_zero", c_int32),
        ("scale_bytes", c_int32),
        ("unused", c_int32),
    )


class Rows(ctypes.Structure):
    """`Segment` of calls.h, in the order of batch.Segment's fields there."""

    _fields_ = (("slot", c_int64), ("start", c_int64), ("length", c_int64), ("past", c_int64))


_pointer, _long = c_void_p, c_int64
_SIGNATURES: Mapping[str, tuple[object, ...]] = {
    "loradesk_pack": (_pointer, c_int, _long, _pointer, _pointer, c_int),
    "loradesk_pack_plain": (_pointer, _long, _pointer, _pointer, c_int),
    "loradesk_rows": (_pointer, _pointer, _long, _pointer),
    "loradesk_multiply": (_pointer, c_int, _pointer, _long, _long, _pointer, _long, c_int),
    "loradesk_add_rms_norm": (_pointer, _pointer, _pointer, c_float, _pointer, _long, _long, c_int),
    "loradesk_add_bias": (_pointer, _pointer, _long, _long),
    "loradesk_silu_product": (_pointer, _long, _pointer, _long, _long, c_int),
    "loradesk_attend": (
        *(_pointer, _long) * 3,  # q, k, v and their rows
        *(_pointer, _pointer, _long),  # cos, sin, rotary
        *(_pointer, _pointer, _long, _long),  # keys, values, sizes of a slot and a head
        *(_pointer, c_int),  # segments and their count
        *(_long,) * 3,  # heads, kv_heads, dim
        *(c_float, _long, c_float, _pointer, c_int),  # scale, window, limit, out, threads
    ),
    "loradesk_adapt": (
        *(_pointer, _long, _long),  # x, its rows' distance, rows
        *(_pointer, _pointer, _long),  # a, factors, their rows' distance
        *(_pointer, c_int, _pointer, _pointer, _long, c_int),  # b and its count, inner, y, its rows' distance, threads
    ),
    "loradesk_replay": (_pointer, _long),  # calls and their count
}

threads = psutil.cpu_count(logical=False) or 1
"""Threads that the kernels share out their work on. A thread that another program holds up takes less of it, so that
there need not be fewer for small models, as there must be of torch's.
"""


def form() -> str:
    """The form of the kernels in use on the CPU, as `LORADESK_KERNELS` names it; "torch" where there are none.

    Raises:
        SettingError: the variable asks for what cannot run here.
    """
    return _in_use(os.environ.get(forms.VARIABLE, ""))[0]


def library() -> ctypes.CDLL | None:
    """The library in that form, or None: torch does the work.

    Raises:
        SettingError: see `form`.
    """
    return _in_use(os.environ.get(forms.VARIABLE, ""))[1]


@cache
def _in_use(value: str) -> tuple[str, ctypes.CDLL | None]:
    """value: the variable's, so that each is looked into once."""
    wanted = value.strip().lower() or forms.AUTO
    for candidate in forms.candidates(wanted):
        found = _loaded(forms.file_of(candidate))
        if found is not None:
            return candidate, found
    if wanted not in (forms.AUTO, forms.TORCH):
        raise forms.unusable(wanted, "cannot be loaded: it was compiled from other sources, or for another system")
    return forms.TORCH, None


def _loaded(file: Path) -> ctypes.CDLL | None:
    """The library in this file, or None where it was compiled for another system, or from other sources."""
    try:
        found = load(file)
    except (OSError, AttributeError) as problem:
        logger.warning("The compiled kernels %s cannot be used: %s", file.name, problem)
        return None
    if digest() in (None, found.loradesk_sources().decode()):
        return found
    logger.warning("The compiled kernels %s are of other sources", file.name)
    return None


def load(file: Path) -> ctypes.CDLL:
    """The library in this file.

    Raises:
        OSError: it cannot be loaded here.
        AttributeError: it was compiled from other sources.
    """
    found = ctypes.CDLL(str(file))
    for name, types in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes = types
        function.restype = None
    found.loradesk_sources.restype = ctypes.c_char_p
    return found


def functions() -> ctypes.CDLL:
    """The library, for what is made only where there is one."""
    found = library()
    assert found is not None, "this needs the compiled library"
    return found


Recorder = Callable[[Any, tuple[Any, ...]], None]
"""Takes one of the library's functions and what it was called with."""

_thread = threading.local()


@contextlib.contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Within this, what this thread makes by `call` is told to the recorder."""
    _thread.recorder = recorder
    try:
        yield
    finally:
        _thread.recorder = None


def call(function: Any, *arguments: Any) -> None:
    """Call one of the library's functions."""
    function(*arguments)
    recorder: Recorder | None = getattr(_thread, "recorder", None)
    if recorder is not None:
        recorder(function, arguments)
