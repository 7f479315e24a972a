"""What a path is that the desktop or the command line asks to open. Touches the disk: call it off the GUI thread."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from loradesk_app.loader.load_form import LoadForm, is_local
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError, FileFormatError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.adapter_folder import list_files
from loradesk_engine.formats.adapter_place import folders_in

CONFIGS = ("config.json", "adapter_config.json", "xlora_config.json")
MAX_ADAPTERS = 64  # rows that the loader is filled with
KINDS = (
    "a .gguf file, the folder of a model, of an adapter, of several adapters or of an X-LoRA checkpoint, "
    "or an ordering file (.json)"
)


def recognise(path: str) -> LoadSettings | LoadForm | Path:
    """What is to be done with a path.

    Weights and configurations stand for the folder they lie in, since many file managers open no folders.

    Returns:
        Settings for a model, which is loaded; fields for an adapter or a checkpoint, with which the loader opens; the
        path of an ordering file, which is edited.

    Raises:
        FileFormatError: there is nothing, or nothing that Loradesk opens. AdapterError: a configuration is malformed.
    """
    found = Path(path)
    if os.path.isfile(found) and (found.suffix.lower() == ".safetensors" or found.name in CONFIGS):
        found = found.parent
    if os.path.isdir(found):
        return _folder(found)
    if not os.path.isfile(found):
        raise FileFormatError("There is no such file or folder, or it may not be read.", file=path)
    match found.suffix.lower():
        case ".gguf":
            return LoadSettings(base=str(found))
        case ".json":
            return found
    raise FileFormatError("Loradesk cannot open this file.", file=path, remedy=f"Open {KINDS}.")


def _folder(folder: Path) -> LoadSettings | LoadForm:
    """An adapter's folder often holds its base's config.json too, so that one is asked for last."""
    checkpoint, adapter = folder / "xlora_config.json", folder / "adapter_config.json"
    if checkpoint.is_file():
        values = read_json_object(checkpoint, error=AdapterError)
        return _xlora(folder, values.get("base_model_id"))
    if adapter.is_file():
        values = read_json_object(adapter, error=AdapterError)
        base = values.get("base_model_name_or_path")
        if values.get("peft_type") == "XLORA":
            return _xlora(folder, base)
        return _with_base(base, LoadForm(mode="lora", adapters=(AdapterSource(folder.name, str(folder)),)))
    if (folder / "config.json").is_file():
        return LoadSettings(base=str(folder))
    adapters = _adapters_in(folder)
    if adapters:
        return _with_base(None, LoadForm(mode="lora", adapters=adapters))
    raise FileFormatError("Loradesk finds nothing to open in this folder.", file=folder, remedy=f"Open {KINDS}.")


def _adapters_in(folder: Path) -> tuple[AdapterSource, ...]:
    """The adapters in the folders of a folder."""
    found = folders_in(list_files(folder))
    return tuple(AdapterSource(name, str(folder / inside)) for name, inside in list(found.items())[:MAX_ADAPTERS])


def _xlora(folder: Path, base: object) -> LoadForm:
    orderings = sorted(folder.glob("*ordering*.json"))
    ordering = str(orderings[0]) if len(orderings) == 1 else ""
    return _with_base(base, LoadForm(mode="xlora", xlora=str(folder), ordering=ordering))


def _with_base(base: object, form: LoadForm) -> LoadForm:
    """The loader's fields, with the base that a configuration names if it names one."""
    name = base if isinstance(base, str) else ""
    if not name or is_local(name) or os.path.isdir(name):
        return replace(form, source="local", path=name)
    return replace(form, source="hub", hub_id=name)
