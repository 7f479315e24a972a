"""safetensors files: the header, checked before anything is mapped, and the tensors, mapped and never copied."""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradesk_engine.errors import CheckpointError, FileFormatError, LoradeskError
from loradesk_engine.files import json_type, open_file, parse_json, read_json_object

if TYPE_CHECKING:  # the header alone must be readable without torch: memory estimates, ordering files
    from torch import Tensor

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLED_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, bare pickles
INDEX = "model.safetensors.index.json"
SHARD_NAME = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
ADAPTER_NAME = re.compile(r"^base_model\.|\.lora_")
MAX_NAME_CHARACTERS = 4096
MAX_HEADER_BYTES = 100 * 2**20  # the format's own limit
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a header: its file, its name there, type name, shape and where its bytes lie in the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


def read_header(path: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Tensor name -> entry. Every offset, length and shape is checked against the file's size.

    Raises:
        FileFormatError: the file is missing, truncated or not safetensors; names the file and the tensor.
    """
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise FileFormatError(
                "The file is too short for safetensors.", file=path, field="header", remedy="Download or copy it again."
            )
        if prefix.startswith(PICKLED_BEGINNINGS) and path.suffix != ".safetensors":
            raise refuse_pickle(path)
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER_BYTES or 8 + length > size:
            raise FileFormatError(
                f"The header claims {length:,} bytes, the file holds {size:,}.",
                file=path,
                field="header",
                remedy="It is truncated or not a safetensors file: download or copy it again.",
            )
        header = parse_json(file.read(length), file=path)
    if not isinstance(header, dict):
        raise FileFormatError(f"The header is {json_type(header)}, not an object.", file=path, field="header")
    data_start = 8 + length
    entries = {
        name: _entry(path, name, fields, data_start, size) for name, fields in header.items() if name != "__metadata__"
    }
    _refuse_overlaps(path, entries)
    return entries


def _entry(path: Path, name: str, fields: Any, data_start: int, size: int) -> TensorEntry:
    def refuse(problem: str) -> FileFormatError:
        return FileFormatError(problem, file=path, field=name, remedy="Download or copy the file again.")

    if len(name) > MAX_NAME_CHARACTERS:
        raise refuse(f"The tensor's name has {len(name):,} characters.")
    if not isinstance(fields, dict):
        raise refuse("The tensor's entry is not an object.")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise refuse(f"The type {dtype!r} is not supported.")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**48 for n in shape) or len(shape) > 8:
        raise refuse(f"The shape {shape!r} is not a list of sizes.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise refuse(f"The offsets {offsets!r} are not two positions.")
    start, end = data_start + offsets[0], data_start + offsets[1]
    if end > size:
        raise refuse(f"The tensor ends at byte {end:,}, the file at {size:,}: it is truncated.")
    if end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise refuse(f"{end - start:,} bytes cannot hold the shape {shape} of type {dtype}.")
    return TensorEntry(path, name, dtype, tuple(shape), start, end)


def _refuse_overlaps(path: Path, entries: Mapping[str, TensorEntry]) -> None:
    last_end, last_name = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < last_end:
            raise FileFormatError(f"The tensor overlaps {last_name!r}.", file=path, field=name)
        if entry.nbytes:
            last_end, last_name = entry.end, name


class SafetensorsWeights(Mapping[str, "Tensor"]):
    """The tensors of one or more files by name, as views of the mapped files (torch, on the CPU).

    A view costs no memory until it is read, and the pages it reads belong to the system's file cache.
    """

    def __init__(self, files: list[Path]) -> None:
        """Read and check all headers.

        Raises:
            FileFormatError: a file is bad, or two files hold the same tensor.
        """
        self.files = files
        self.entries: dict[str, TensorEntry] = {}
        for path in files:
            for name, entry in read_header(path).items():
                if name in self.entries:
                    raise FileFormatError(
                        f"The tensor is in {self.entries[name].file.name} as well.", file=path, field=name
                    )
                self.entries[name] = entry
        self._open: dict[Path, Any] = {}

    def rename(self, name_of: Callable[[str], str | None]) -> None:
        """Give the tensors other names; those of None are left out.

        Raises:
            FileFormatError: two tensors get the same name.
        """
        entries: dict[str, TensorEntry] = {}
        for stored, entry in self.entries.items():
            name = name_of(stored)
            if name in entries:
                raise FileFormatError(f"{entries[name].name} is the same tensor.", file=entry.file, field=stored)
            if name is not None:
                entries[name] = entry
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import SafetensorError, safe_open

        entry = self.entries[name]
        try:
            if entry.file not in self._open:
                self._open[entry.file] = safe_open(entry.file, framework="pt", device="cpu")
            tensor: Tensor = self._open[entry.file].get_tensor(entry.name)
            return tensor
        except (SafetensorError, OSError) as problem:
            raise FileFormatError(f"The tensor cannot be read: {problem}.", file=entry.file, field=name) from problem

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # the mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def find_pickle(folder: Path) -> Path | None:
    """A file of the folder that looks like pickled weights."""
    return min((path for path in folder.iterdir() if path.suffix in PICKLED_SUFFIXES), default=None)


def refuse_pickle(path: Path, error: type[LoradeskError] = CheckpointError) -> LoradeskError:
    """The error for weights that are never read."""
    return error(
        "The weights are pickled, and unpickling runs whatever code the file holds.",
        file=path,
        remedy="Convert them to safetensors, or save them again with safe_serialization=True.",
    )


def is_adapter(path: Path) -> bool:
    """Whether a file holds an adapter's weights and none of a model.

    Raises:
        FileFormatError: its header cannot be read.
    """
    names = read_header(path).keys()
    return bool(names) and all(ADAPTER_NAME.search(name) for name in names)


def read_checkpoint(path: Path) -> SafetensorsWeights:
    """The weights of a model.

    Args:
        path: the model's folder, or one file in it: itself, or all files of the index where it is one of them.

    Raises:
        CheckpointError: there are none, or the index and the files disagree.
        FileFormatError: a file is bad.
    """
    folder = path if path.is_dir() else path.parent
    shards = _read_index(folder / INDEX)
    if path != folder and path.name not in shards.values():
        if SHARD_NAME.search(path.name):
            raise CheckpointError(
                "The file is one of several, and no index says which belong together.",
                file=path,
                remedy=f"Add {INDEX} to the folder.",
            )
        return SafetensorsWeights([path])
    weights = SafetensorsWeights(checkpoint_files(folder))
    _refuse_other_places(folder / INDEX, shards, weights)
    return weights


def _read_index(index: Path) -> dict[str, str]:
    """Tensor -> file name of an index; nothing where there is none."""
    if not index.is_file():
        return {}
    shards = read_json_object(index, error=CheckpointError).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError("The index has no map from tensors to files.", file=index, field="weight_map")
    for name in shards.values():
        if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
            raise CheckpointError(
                f"The shard name {name!r} is a path, not a file name.", file=index, field="weight_map"
            )
    return shards


def _refuse_other_places(index: Path, shards: Mapping[str, str], weights: SafetensorsWeights) -> None:
    """Refuse an index that is of other files than those beside it."""
    if not shards:
        return
    for name, shard in shards.items():
        if name not in weights.entries or weights.entries[name].file.name != shard:
            raise CheckpointError(
                f"The index says that the tensor is in {shard}, and it is not.",
                file=index,
                field=name,
                remedy="Download index and weights again.",
            )
    for name, entry in weights.entries.items():
        if name not in shards:
            raise CheckpointError(
                f"The tensor is in {entry.file.name}, and the index does not name it.",
                file=index,
                field=name,
                remedy="Download index and weights again.",
            )


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those of `model.safetensors.index.json`, else `model.safetensors`.

    Raises:
        CheckpointError: there are none, the index is malformed or names a file outside the folder.
    """
    shards = _read_index(folder / INDEX)
    if shards:
        return [folder / name for name in sorted(set(shards.values()))]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if others:
        raise CheckpointError(
            f"{len(others)} safetensors files but no index that says which belong together.",
            file=folder,
            remedy="Add model.safetensors.index.json.",
        )
    pickled = find_pickle(folder)
    if pickled is not None:
        raise refuse_pickle(pickled)
    raise CheckpointError("No safetensors weights in this folder.", file=folder, remedy="Choose a model's folder.")
