"""GGUF files (llama.cpp's format): metadata and tensors, checked before they are used, mapped and never copied.

Layout, all numbers little endian:

    "GGUF"  version u32  tensor count u64  metadata count u64
    metadata: key string, value type u32, value         strings: length u64, UTF-8 bytes
    tensors: name string, dimensions u32, sizes u64 each (the fastest one first), type u32, offset u64
    padding to the alignment, then the tensors' data; offsets count from here

Versions 2 and 3 share it (3 allowed big endian as well); version 1 had 32-bit counts. No torch here: a model's facts
    are read from its file before torch is loaded.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from loradesk_engine.errors import FileFormatError
from loradesk_engine.files import open_file

Bytes = npt.NDArray[np.uint8]

BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "F64": (1, 8),
        "I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8),
        "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
        "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
        "IQ4_NL": (32, 18),
    }
)  # fmt: skip
"""The types we read: name -> (elements a block, bytes a block). A row is a whole number of blocks."""

_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 4: "Q4_2", 5: "Q4_3", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Every ggml type, those that llama.cpp dropped included, so that a refusal can name what it refuses."""

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    code: (struct.Struct(layout), np.dtype(layout))
    for code, layout in {
        0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", _BOOL: "<B", 10: "<Q", 11: "<q", 12: "<d",
    }.items()
}  # fmt: skip
"""Value type -> how one such number, and an array of them, is read; a boolean is a byte."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

# Bounds that no real file comes near. Together they keep a hostile one from costing more than a few seconds and a small
# multiple of its own size, however large it is.
MAX_HEADER_BYTES = 64 * 2**20  # everything before the tensors' data; a vocabulary of 262,144 with merges takes 15 MiB
MAX_ENTRIES = 2**16  # metadata keys; tensors
MAX_INNER_ARRAYS = 2**12  # arrays inside arrays, in all: an empty one is 12 bytes in the file and 100 in memory
MAX_DEPTH = 4  # arrays in arrays
MAX_NAME_BYTES = 1024  # keys and tensor names; ggml's own limit for the latter is 63
MAX_DIMENSIONS = 4  # ggml's own limit
MAX_SIZE = 2**40  # along one dimension
MIN_ALIGNMENT, DEFAULT_ALIGNMENT, MAX_ALIGNMENT = 8, 32, 2**20  # the format asks for a multiple of 8

_DAMAGED = "It is truncated or not a valid GGUF file: download or copy it again."
_NOT_GGUF = {
    b"vers": "This is a git-lfs pointer, not the file it stands for.",
    b"<!DO": "This is a web page, not a GGUF file.",
    b"PK\x03\x04": "This is a zip or PyTorch archive, not a GGUF file.",
    b"lmgg": "This is a GGML file, the format before GGUF.",
    b"fmgg": "This is a GGML file, the format before GGUF.",
    b"tjgg": "This is a GGML file, the format before GGUF.",
}  # what is often found under a .gguf name, by its first four bytes


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file.

    Attributes:
        name: as in the file.
        type: a key of `BLOCKS`.
        shape: in torch's order, rows first (the file stores it reversed); counts elements, not blocks. () is a scalar.
        start: its first byte's offset in the file.
        nbytes: its bytes in the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A GGUF file: its metadata in memory, its tensors mapped.

    The mapping lives as long as this object or any view of it does.

    Attributes:
        path: the file.
        metadata: key -> int, float, bool or str; arrays of strings and of arrays are lists, arrays of numbers and
            booleans numpy arrays. Floats may be NaN or infinite: who uses one checks it.
        tensors: name -> tensor, in the file's order.
    """

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, GgufTensor] = field(repr=False)
    _bytes: Bytes = field(repr=False)

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes, `[nbytes]`, a view of the mapped file: no memory until read, and never written back.

        Raises:
            KeyError: the file has no such tensor.
        """
        tensor = self.tensors[name]
        return self._bytes[tensor.start : tensor.start + tensor.nbytes]


def read_gguf(path: str | os.PathLike[str]) -> GgufFile:
    """Read and check everything but the tensors' data, and map that.

    Raises:
        FileFormatError: the file is missing, damaged, hostile, of an unsupported version or byte order, or holds a
            tensor of an unsupported type; names the file and the metadata key, the tensor or "header".
    """
    path = Path(path)
    return _read(_Header(path, _map(path)))


def read_gguf_beginning(path: str | os.PathLike[str], beginning: bytes, size: int) -> GgufFile | None:
    """Read and check a file of which only the first bytes are here; None where its header goes on beyond them.

    Args:
        path: what to call the file; it is not opened.
        beginning: its first bytes. `raw` gives of a tensor only what lies in them.
        size: bytes of the whole file.

    Raises:
        FileFormatError: as `read_gguf`, as far as these bytes show it.
    """
    header = _Header(Path(path), beginning, size)
    try:
        return _read(header)
    except FileFormatError:
        if header.goes_on:
            return None
        raise


def _read(header: _Header) -> GgufFile:
    tensor_count, metadata_count = header.counts()
    metadata = header.metadata(metadata_count)
    tensors = header.tensors(tensor_count, _alignment(header.path, metadata))
    data = np.frombuffer(header.data, np.uint8)
    return GgufFile(header.path, MappingProxyType(metadata), MappingProxyType(tensors), data)


def _map(path: Path) -> mmap.mmap:
    """Map the whole file, copy on write: torch has no read-only tensors, and a write must neither crash nor be kept."""
    with open_file(path, field="header") as file:
        if os.fstat(file.fileno()).st_size < 4:  # also: an empty file cannot be mapped
            raise FileFormatError("The file is too short for GGUF.", file=path, field="header", remedy=_DAMAGED)
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError:  # systems that set memory aside for every page that might be written refuse large files
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _alignment(path: Path, metadata: Mapping[str, Any]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    # a power of two has one bit
    if type(value) is not int or not MIN_ALIGNMENT <= value <= MAX_ALIGNMENT or value.bit_count() != 1:
        shown = f"{value:,}" if isinstance(value, int | float) else "not a number"
        raise FileFormatError(
            f"The alignment is {shown}: it must be a power of two from {MIN_ALIGNMENT} to {MAX_ALIGNMENT:,}.",
            file=path,
            field="general.alignment",
            remedy=_DAMAGED,
        )
    return value


def _shown(name: str) -> str:
    """A name out of the file, made harmless for a terminal and short enough for a message."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 100 else f"{text[:100]}…"


class _Header:
    """A cursor over the part of the file before the tensors' data. Nothing is read, or made room for, unchecked.

    Attributes:
        data: the file, or its first bytes.
        size: bytes of the whole file.
        goes_on: whether reading ended because `data` did, while the file has more.
    """

    def __init__(self, path: Path, data: mmap.mmap | bytes, size: int | None = None) -> None:
        self.path = path
        self.data = data
        self.size = len(data) if size is None else size
        self.goes_on = False
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.at = 0
        self.inner_arrays = 0

    def refuse(self, where: str, problem: str, remedy: str = _DAMAGED) -> FileFormatError:
        return FileFormatError(problem, file=self.path, field=_shown(where) or "header", remedy=remedy)

    def take(self, count: int, where: str, what: str) -> int:
        """Step over `count` bytes that hold `what`, and give their position."""
        start = self.at
        if count > self.end - start:
            raise self.refuse(where, self.no_room(what, count, len(self.data) - start))
        self.at = start + count
        return start

    def no_room(self, what: str, needed: int, left: int) -> str:
        start = len(self.data) - left
        self.goes_on = len(self.data) - start < needed <= min(self.size, MAX_HEADER_BYTES) - start
        if needed > left:
            return f"{what} needs {needed:,} bytes, {left:,} are left in the file."
        return f"{what} ends beyond {MAX_HEADER_BYTES:,} bytes, our limit for all that comes before the tensors' data."

    def u32(self, where: str, what: str) -> int:
        number: int = _U32.unpack_from(self.data, self.take(4, where, what))[0]
        return number

    def u64(self, where: str, what: str) -> int:
        number: int = _U64.unpack_from(self.data, self.take(8, where, what))[0]
        return number

    def counts(self) -> tuple[int, int]:
        """Check what the file says it is; its numbers of tensors and of metadata entries."""
        start = self.take(4, "header", "The file's mark")
        magic = self.data[start : self.at]
        if magic != b"GGUF":
            problem = _NOT_GGUF.get(magic, f"The file does not begin with GGUF but with {magic!r}.")
            raise self.refuse("header", problem, "Choose a GGUF file, or download this one again.")
        version = self.u32("header", "The version")
        if version not in (2, 3):
            if version & 0xFFFF == 0 and version:  # read in the other byte order it is small
                problem, remedy = "Big-endian GGUF is not supported.", "Use the little-endian file of this model."
            elif version > 3:
                problem, remedy = f"GGUF version {version:,} is not supported, 2 and 3 are.", "Use an older conversion."
            else:
                problem, remedy = f"GGUF version {version} is not supported, 2 and 3 are.", "Convert the model again."
            raise self.refuse("header", problem, remedy)
        tensors, metadata = self.u64("header", "The tensor count"), self.u64("header", "The metadata count")
        for count, what in ((tensors, "tensors"), (metadata, "metadata entries")):
            if count > MAX_ENTRIES:
                raise self.refuse("header", f"The file claims {count:,} {what}, our limit is {MAX_ENTRIES:,}.")
        return tensors, metadata

    def metadata(self, count: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for _ in range(count):
            key = self.name("A metadata key")
            if key in result:
                raise self.refuse(key, "The key appears twice.")
            result[key] = self.value(self.u32(key, "The value's type"), key)
        return result

    def name(self, what: str) -> str:
        """A key or a tensor's name: text that no one could take for a path."""
        length = self.u64("header", what)
        if not 0 < length <= MAX_NAME_BYTES:
            raise self.refuse("header", f"{what} is {length:,} bytes long, 1 to {MAX_NAME_BYTES:,} are possible.")
        start = self.take(length, "header", what)
        try:
            name = self.data[start : self.at].decode()
        except UnicodeDecodeError:
            raise self.refuse("header", f"{what} at byte {start:,} is not UTF-8 text.") from None
        if not name.isprintable() or name.startswith(".") or any(sign in name for sign in "/\\:"):
            raise self.refuse(name, f"{what} looks like a path or is not plain text.", "Do not use this file.")
        return name

    def value(self, kind: int, where: str) -> Any:
        if kind == _STRING:
            return self.strings(1, where)[0]
        if kind == _ARRAY:
            return self.array(where, depth=1)
        if kind not in _NUMBERS:
            raise self.refuse(where, f"The value's type, {kind:,}, is none of GGUF's.")
        layout, _ = _NUMBERS[kind]
        number = layout.unpack_from(self.data, self.take(layout.size, where, "The value"))[0]
        if kind != _BOOL:
            return number
        if number > 1:
            raise self.refuse(where, f"The boolean is {number}, neither 0 nor 1.")
        return bool(number)

    def array(self, where: str, depth: int) -> list[Any] | npt.NDArray[Any]:
        kind, count = self.u32(where, "The array's type"), self.u64(where, "The array's count")
        if kind in _NUMBERS:
            dtype = _NUMBERS[kind][1]
            start = self.take(count * dtype.itemsize, where, f"The array of {count:,} numbers")
            # a copy: small, aligned, and free of the mapping
            numbers = np.frombuffer(self.data, dtype, count, start).copy()
            if kind != _BOOL:
                return numbers
            if count and numbers.max() > 1:
                raise self.refuse(where, f"A boolean is {numbers.max()}, neither 0 nor 1.")
            return numbers.view(np.bool_)
        if kind == _STRING:
            return self.strings(count, where)
        if kind == _ARRAY:
            self.inner_arrays += count
            if self.inner_arrays > MAX_INNER_ARRAYS or depth == MAX_DEPTH:
                deep = f"arrays {depth + 1:,} deep, our limit is {MAX_DEPTH}"
                many = f"{self.inner_arrays:,} arrays inside arrays, our limit is {MAX_INNER_ARRAYS:,}"
                raise self.refuse(where, f"There are {deep if depth == MAX_DEPTH else many}.", "Do not use this file.")
            return [self.array(where, depth + 1) for _ in range(count)]
        raise self.refuse(where, f"The array's type, {kind:,}, is none of GGUF's.")

    def strings(self, count: int, where: str) -> list[str]:
        """`count` strings. The one loop that a vocabulary's every token goes through, hence no call per string."""
        data, end, at, unpack = self.data, self.end, self.at, _U64.unpack_from
        if 8 * count > end - at:  # their lengths alone
            what = "The string" if count == 1 else f"The array of {count:,} strings"
            raise self.refuse(where, self.no_room(what, 8 * count, len(data) - at))
        result = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(data, at)[0]
                if at > end:
                    raise self.refuse(where, self.no_room("A string", at - start, len(data) - start))
                result.append(data[start:at].decode())
        except struct.error:  # no 8 bytes are left
            self.goes_on = len(data) < min(self.size, MAX_HEADER_BYTES)
            raise self.refuse(where, "The file ends before the array does.") from None
        except UnicodeDecodeError:
            raise self.refuse(where, f"The string at byte {start:,} is not UTF-8 text.") from None
        self.at = at
        return result

    def tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        """The tensors; on return all lie inside the file and apart from each other."""
        found: dict[str, GgufTensor] = {}
        for _ in range(count):
            tensor = self.tensor(alignment)
            if tensor.name in found:
                raise self.refuse(tensor.name, "The tensor appears twice.")
            found[tensor.name] = tensor
        # offsets count from the end of this header, known only now
        data_start = -(-self.at // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, it in found.items():
            tensors[name] = GgufTensor(name, it.type, it.shape, data_start + it.start, it.nbytes)
            end = data_start + it.start + it.nbytes
            if end > self.size:
                raise self.refuse(name, f"The tensor ends at byte {end:,}, the file at {self.size:,}.")
        previous: GgufTensor | None = None
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
            if previous and tensor.start < previous.start + previous.nbytes:
                raise self.refuse(tensor.name, f"The tensor overlaps {_shown(previous.name)!r}.")
            previous = tensor
        return tensors

    def tensor(self, alignment: int) -> GgufTensor:
        """One tensor's entry, its start still counted from the beginning of the data."""
        name = self.name("A tensor's name")
        dimensions = self.u32(name, "The number of dimensions")
        if dimensions > MAX_DIMENSIONS:
            raise self.refuse(name, f"The tensor has {dimensions:,} dimensions, our limit is {MAX_DIMENSIONS}.")
        shape = tuple(reversed([self.u64(name, "The shape") for _ in range(dimensions)]))
        if not all(0 < size <= MAX_SIZE for size in shape):
            raise self.refuse(name, f"The shape {list(shape)} has a size that is zero or over {MAX_SIZE:,}.")
        code = self.u32(name, "The type")
        kind = _TYPE_NAMES.get(code, f"Tensor type {code:,}")
        if kind not in BLOCKS:
            raise self.refuse(name, f"{kind} is not supported.", f"Use a file with {', '.join(BLOCKS)} only.")
        elements, size = BLOCKS[kind]
        columns = shape[-1] if shape else 1
        if columns % elements:
            raise self.refuse(name, f"Rows of {columns:,} are not made of {kind} blocks of {elements} elements.")
        offset = self.u64(name, "The offset")
        if offset % alignment:
            raise self.refuse(name, f"The offset {offset:,} is not a multiple of the alignment, {alignment}.")
        return GgufTensor(name, kind, shape, offset, math.prod(shape) // elements * size)
