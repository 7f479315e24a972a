"""Adapters in folders on this computer, by name: a folder may be one adapter's, or hold several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from loradesk_engine.errors import AdapterError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.adapter_place import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterName,
    AdapterPlace,
    find_place,
    no_such_adapter,
)
from loradesk_engine.formats.peft import PeftAdapter, read_adapter

MAX_DEPTH = 4  # folders below the one that is named
MAX_ENTRIES = 20_000  # files and folders that are looked at: a name like ~ must not walk through a whole disk
SUFFIXES = (".json", ".safetensors")
MAX_NAME_BYTES = 256  # of a file's name, on every system


def read_named(source: Path, wanted: AdapterName) -> PeftAdapter:
    """The adapter of a name in a folder, or the one adapter that the folder or file is.

    Raises:
        AdapterError: there is none, several fit, or it is not supported. FileFormatError: a file is malformed.
    """
    if source.is_file() or not source.is_dir():
        return read_adapter(source)  # which says what is wrong with a path that does not exist
    return read_place(source, place_in(source, wanted, top=is_adapter(source)))


def find_adapter(folder: Path, name: str, names: Sequence[str]) -> PeftAdapter:
    """The adapter of a name in a checkpoint's folder, which is not an adapter's own.

    Args:
        names: of all the checkpoint's adapters.

    Raises:
        AdapterError: there is none, several fit, or it is not supported. FileFormatError: a file is malformed.
    """
    return read_place(folder, place_in(folder, AdapterName(name, tuple(names)), top=False, field="order"))


def place_in(folder: Path, wanted: AdapterName, *, top: bool, field: str = "name") -> AdapterPlace:
    """Where the adapter of a name lies in a folder.

    Args:
        top: whether the folder itself may be the adapter's.
        field: what gave the name, for messages.

    Raises:
        AdapterError: there is none, or several fit.
    """
    place = _usual_place(folder, wanted.name)
    if place is not None:
        return place
    files = list_files(folder)
    try:
        place = find_place(files, wanted, top=top)
    except AdapterError as problem:
        raise AdapterError(problem.problem, file=folder, field=wanted.name, remedy=problem.remedy) from None
    if place is None:
        raise no_such_adapter(wanted.name, files, str(folder), field)
    return place


def read_place(folder: Path, place: AdapterPlace) -> PeftAdapter:
    """The adapter at a place in a folder. Raises as `read_adapter`."""
    config = folder / place.config
    weights = None if place.weights is None else folder / place.weights
    return read_adapter(config.parent, weights_file=weights, config_file=config)


def list_files(folder: Path) -> list[str]:
    """The JSON and safetensors files below a folder: relative paths with slashes.

    Raises:
        AdapterError: there are too many files and folders, or they cannot be read.
    """
    try:
        return sorted(_walk(folder))
    except OSError as problem:
        raise AdapterError(f"The folder cannot be read: {problem.strerror or problem}.", file=folder) from None


def _walk(folder: Path) -> Iterator[str]:
    waiting = [("", 0)]
    seen = 0
    while waiting:
        inside, depth = waiting.pop()
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    raise AdapterError(
                        f"More than {MAX_ENTRIES:,} files and folders are here.",
                        file=folder,
                        remedy="Name the folder that holds the adapters.",
                    )
                path = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False) and depth < MAX_DEPTH and not entry.name.startswith("."):
                    waiting.append((f"{path}/", depth + 1))
                elif entry.name.endswith(SUFFIXES) and entry.is_file():
                    yield path


def _usual_place(folder: Path, name: str) -> AdapterPlace | None:
    """Where most checkpoints have it; nothing else has to be looked at then."""
    if Path(name).name != name or name in ("", "..") or not name.isprintable() or len(name.encode()) >= MAX_NAME_BYTES:
        return None  # no file has this name
    for inside in (name, f"adapters/{name}"):
        if (folder / inside / CONFIG_NAME).is_file():
            return AdapterPlace(f"{inside}/{CONFIG_NAME}", None)
    return None


def is_adapter(folder: Path) -> bool:
    """Whether the folder itself may be one adapter's: not with the configuration of PEFT's X-LoRA."""
    file = folder / CONFIG_NAME
    if not file.is_file():
        return (folder / WEIGHTS_NAME).is_file()
    return read_json_object(file, error=AdapterError).get("peft_type") != "XLORA"
