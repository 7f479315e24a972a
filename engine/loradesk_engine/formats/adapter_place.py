"""Which files of a folder or repository are the adapter of a name. No torch and no disk here: lists of names alone.

An id may be read in two ways: as one adapter's folder, or, as mistral.rs does, as a folder of several adapters in which
the files are meant whose path contains the adapter's name. An exact folder or file name wins over containment, so that
`adapter_1` is never taken for `adapter_10`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from loradesk_engine.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CLASSIFIER_NAME = "xlora_classifier.safetensors"
LISTED = 12  # names in a message


@dataclass(frozen=True)
class AdapterName:
    """An adapter to look for.

    Attributes:
        name: what it is called; empty for all that are there.
        among: names of the adapters that may lie beside it: a file belongs to the longest name that fits.
    """

    name: str
    among: tuple[str, ...] = ()


ALL = AdapterName("")


@dataclass(frozen=True)
class AdapterPlace:
    """Where an adapter lies; paths relative to the folder that was searched, with slashes.

    Attributes:
        weights: None where only the configuration is there.
    """

    config: str
    weights: str | None


def find_place(files: Collection[str], wanted: AdapterName, *, top: bool = True) -> AdapterPlace | None:
    """The adapter of a name among files; None if there is none.

    Args:
        files: relative paths with slashes.
        top: whether the folder itself may be the adapter's, when nothing inside has exactly its name.

    Raises:
        AdapterError: several fit, or the configuration is missing.
    """
    place = _exact_folder(files, wanted.name) or _among_weights(files, wanted, _is_exact)
    if place is None and top and (CONFIG_NAME in files or WEIGHTS_NAME in files):
        place = place_of_folder(files, "")
    return place or _among_weights(files, wanted, _is_word) or _among_weights(files, wanted, _is_contained)


def folders_in(files: Collection[str]) -> dict[str, str]:
    """Name -> folder of the adapters among files, numbers in their natural order. What lies deeper is left out: older
    states of a training.
    """
    parents = _parents(files)
    usual = [folder for folder in parents if folder.startswith("adapters/") and folder.count("/") == 1]
    found = {PurePosixPath(folder).name: folder for folder in (*usual, *_shallowest(parents))}
    return {name: found[name] for name in sorted(found, key=natural)}


def natural(name: str) -> list[tuple[str, int, str]]:
    """Sorts adapter_2 before adapter_10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return [(text, len(number.lstrip("0")), number) for text, number in parts]


def no_such_adapter(name: str, files: Collection[str], where: str, field: str = "name") -> AdapterError:
    """The error for a name that is not found.

    Args:
        field: what gave the name.
    """
    names = list(folders_in(files))
    there = f"There are {', '.join(names[:LISTED])}." if names else "It holds no adapter's folder."
    return AdapterError(f"No adapter named {name!r} is here.", file=where, field=field, remedy=there)


def place_of_folder(files: Collection[str], folder: str) -> AdapterPlace:
    """The adapter in a folder that has an adapter's configuration; empty for the folder that was searched."""
    prefix = f"{folder}/" if folder else ""
    weights = prefix + WEIGHTS_NAME
    return AdapterPlace(prefix + CONFIG_NAME, weights if weights in files else None)


def _exact_folder(files: Collection[str], name: str) -> AdapterPlace | None:
    folders = [folder for folder in _parents(files) if folder == name or folder.endswith(f"/{name}")]
    first = [folder for folder in (name, f"adapters/{name}") if folder in folders]
    chosen = first[:1] or _shallowest(folders)
    if len(chosen) > 1:
        raise _ambiguous(name, chosen)
    return place_of_folder(files, chosen[0]) if chosen else None


def _parents(files: Collection[str]) -> list[str]:
    """Folders with an adapter's configuration."""
    return sorted(file[: -len(CONFIG_NAME) - 1] for file in files if file.endswith(f"/{CONFIG_NAME}"))


def _among_weights(
    files: Collection[str], wanted: AdapterName, fits: Callable[[str, str], bool]
) -> AdapterPlace | None:
    names = (wanted.name, *wanted.among)
    mine = [file for file in sorted(files) if _is_weights(file) and _owner(file, names, fits) == wanted.name]
    chosen = _shallowest(mine)
    if len(chosen) > 1:
        raise _ambiguous(wanted.name, chosen)
    return AdapterPlace(_config_beside(files, chosen[0], wanted, fits), chosen[0]) if chosen else None


def _config_beside(files: Collection[str], weights: str, wanted: AdapterName, fits: Callable[[str, str], bool]) -> str:
    """The configuration of flat files carries the name as the weights do; in a folder of its own it has PEFT's name."""
    folder = PurePosixPath(weights).parent
    beside = [file for file in sorted(files) if file.endswith(".json") and PurePosixPath(file).parent == folder]
    names = (wanted.name, *wanted.among)
    own = [
        file
        for file in beside
        if PurePosixPath(file).name != CONFIG_NAME
        and wanted.name in (_owner(PurePosixPath(file).name, names, kind) for kind in (fits, _is_word))
    ]
    own = own or [file for file in beside if PurePosixPath(file).name == CONFIG_NAME]
    if len(own) != 1:
        raise AdapterError(
            f"The configuration of the adapter {wanted.name!r} is missing.",
            file=weights,
            remedy=f"Put {CONFIG_NAME} beside the weights.",
        )
    return own[0]


def _is_weights(file: str) -> bool:
    return file.endswith(".safetensors") and PurePosixPath(file).name != CLASSIFIER_NAME


def _shallowest(paths: Sequence[str]) -> list[str]:
    """Those with the fewest folders above them: what lies deeper are older states of a training."""
    least = min((path.count("/") for path in paths), default=0)
    return [path for path in paths if path.count("/") == least]


def _owner(path: str, names: Sequence[str], fits: Callable[[str, str], bool]) -> str | None:
    """The longest of the names that fits."""
    return max((name for name in names if name and fits(name, path)), key=len, default=None)


def _is_exact(name: str, path: str) -> bool:
    return PurePosixPath(path).stem == name


def _is_word(name: str, path: str) -> bool:
    """Whether the name stands between characters that are no letters or digits."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", path) is not None


def _is_contained(name: str, path: str) -> bool:
    """Whether the name stands anywhere, but not as a part of a longer number."""
    before = r"(?<!\d)" if name[:1].isdigit() else ""
    after = r"(?!\d)" if name[-1:].isdigit() else ""
    return re.search(before + re.escape(name) + after, path) is not None


def _ambiguous(name: str, paths: Sequence[str]) -> AdapterError:
    return AdapterError(
        f"{len(paths)} places could be the adapter {name!r}: {', '.join(paths[:LISTED])}.",
        field="name",
        remedy="Put each adapter into a folder of its name.",
    )
