"""Base models, adapters and X-LoRA checkpoints for the ordering tools: configurations and headers, never weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loradesk_engine.errors import AdapterError, ConfigError, HubError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.gguf import read_gguf
from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.formats.hub import HUB_ID
from loradesk_engine.formats.peft import CONFIG_NAME, WEIGHTS_NAME, read_adapter
from loradesk_engine.formats.xlora import find_adapter, read_xlora
from loradesk_engine.ordering.finding import ClassifierFacts
from loradesk_engine.ordering.modules import linear_modules, match_targets

CONFIGS = ("*adapter_config*.json", "xlora_config.json")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Base:
    """A base model: what the ordering file calls it, and its config.json."""

    model_id: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Adapters:
    """Adapters that were looked into.

    Attributes:
        modules: adapter name -> paths of the modules that it adapts.
        base_model_id: the base that they were trained on, where a configuration says it.
        classifier: facts of the X-LoRA classifier; None for LoRA, or where its weights are not here.
        order: names in training order, where the checkpoint says it.
    """

    modules: Mapping[str, frozenset[str]]
    base_model_id: str | None = None
    classifier: ClassifierFacts | None = None
    order: tuple[str, ...] | None = None


def read_base(source: str) -> Base:
    """The configuration of a folder, a config.json, a GGUF file (its header alone) or a hub id.

    Raises:
        ConfigError, FileFormatError: no config.json there, or it or the GGUF file is malformed. HubError: the hub does
            not give it.
    """
    path = _path(source)
    if path.suffix == ".gguf" and _exists(path):
        return Base(source, GgufModel(read_gguf(path)).hf_config)
    if _exists(path) and path.is_dir():
        return Base(source, read_json_object(path / "config.json", error=ConfigError))
    if _exists(path):
        model_id = str(path.parent) if path.name == "config.json" else source
        return Base(model_id, read_json_object(path, error=ConfigError))
    return Base(source, read_json_object(_from_hub(source, lambda hub: _one_file(hub, source)), error=ConfigError))


def cached_base(model_id: str) -> Base | None:
    """The configuration of a base that is on this machine; None if it is not. The network is not used."""
    if model_id and _exists(_path(model_id) / "config.json"):
        return read_base(model_id)
    if not HUB_ID.fullmatch(model_id):
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(model_id, "config.json")
    except (ValueError, OSError):  # an id that the hub does not allow, or longer than a file name may be
        return None
    return Base(model_id, read_json_object(found, error=ConfigError)) if isinstance(found, str) else None


def supported(base: Base) -> Base:
    """The same base, if its layers are known.

    Raises:
        ConfigError: unsupported architecture or missing counts; names the base.
    """
    try:
        linear_modules(base.config)
    except ConfigError as problem:
        remedy = problem.remedy or "Is this the config.json of a language model?"
        raise ConfigError(problem.problem, file=base.model_id, field=problem.field, remedy=remedy) from None
    return base


def read_loras(sources: Mapping[str, str], config: Mapping[str, Any] | None) -> Adapters:
    """LoRA adapters by name: folders, safetensors files or hub ids.

    Args:
        config: of the base; needed where the weights are not here (hub ids) and only target modules are known.

    Raises:
        AdapterError, FileFormatError, ConfigError, HubError: one of them cannot be read.
    """
    modules, bases = {}, []
    for name, source in sources.items():
        modules[name], base = _read_lora(_local(source), config)
        bases.append(base)
    return Adapters(modules, next((base for base in bases if base), None))


def read_xlora_checkpoint(
    source: str, names: Sequence[str] | None, config: Mapping[str, Any] | None = None
) -> Adapters:
    """An X-LoRA checkpoint: a folder, or a hub id of which the configurations are read.

    Args:
        names: the adapters' names, for checkpoints that do not say them.

    Raises:
        AdapterError, FileFormatError, ConfigError, HubError: it cannot be read.
    """
    folder = _local(source)
    order: tuple[str, ...] | None = None
    classifier = None
    listed: Mapping[str, str] = {}
    if (folder / "xlora_classifier.safetensors").is_file() or (folder / WEIGHTS_NAME).is_file():
        checkpoint = read_xlora(folder)
        listed = checkpoint.adapters or {}
        order = tuple(listed) if checkpoint.form == "peft" else None
        classifier = ClassifierFacts(checkpoint.config.layerwise_scalings, checkpoint.outputs, order)
    elif not (folder / "xlora_config.json").is_file():
        raise AdapterError(
            "No xlora_config.json and no X-LoRA classifier here.", file=folder, remedy="Choose an X-LoRA checkpoint."
        )
    wanted = list(dict.fromkeys([*(names or ()), *listed, *_subfolders(folder)]))
    modules: dict[str, frozenset[str]] = {}
    bases = []
    for name in wanted:
        found = _find_lora(folder, name, wanted, listed.get(name), config)
        if found is not None:
            modules[name] = found[0]
            bases.append(found[1])
    return Adapters(modules, next((base for base in bases if base), None), classifier, order)


def _find_lora(
    folder: Path, name: str, names: Sequence[str], listed: str | None, config: Mapping[str, Any] | None
) -> tuple[frozenset[str], str | None] | None:
    """Modules and base of one adapter of a checkpoint; None when the checkpoint has none of this name."""
    candidates = [folder / "adapters" / name, folder / name] if Path(name).name == name else []
    if listed is not None:
        candidates = [folder / listed, _path(listed), *candidates]
    for candidate in candidates:
        if _exists(candidate / CONFIG_NAME):
            return _read_lora(candidate, config)
    try:
        adapter = find_adapter(folder, name, names)
    except (OSError, ValueError):
        return None  # a name that no file can have
    except AdapterError as problem:
        if problem.field == "order" and problem.problem.startswith("No adapter named"):
            return None  # the checker says so, with the names that there are
        raise
    return frozenset(adapter.modules), adapter.base_model


def _read_lora(source: Path, config: Mapping[str, Any] | None) -> tuple[frozenset[str], str | None]:
    """Modules and base of an adapter: from its weights' header, or from its configuration when they are not here."""
    if source.is_file() or (source / WEIGHTS_NAME).is_file() or not (source / CONFIG_NAME).is_file():
        adapter = read_adapter(source)
        return frozenset(adapter.modules), adapter.base_model
    file = source / CONFIG_NAME
    values = read_json_object(file, error=AdapterError)
    base = values.get("base_model_name_or_path")
    targets = values.get("target_modules")
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise AdapterError("A string or a list of strings is expected.", file=file, field="target_modules")
    if config is None:
        raise AdapterError(
            "The weights are not here, and without the base model the configuration does not tell the modules.",
            file=source,
            remedy="Give the base model.",
        )
    options = {"layers_to_transform": _choice(values, "layers_to_transform", int, file)}
    options |= {key: _choice(values, key, str, file) for key in ("layers_pattern", "exclude_modules")}
    paths = match_targets(linear_modules(config), targets, **options)
    return frozenset(paths), base if isinstance(base, str) and base else None


def _choice(values: Mapping[str, Any], field: str, kind: type, file: Path) -> Any:
    """One value of a kind, a list of them, or null."""
    value = values.get(field)
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is kind for item in items):
        raise AdapterError(f"{value!r:.80} is not of the expected type.", file=file, field=field)
    return value


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders that hold an adapter, numbers in their natural order."""
    names = [path.parent.name for root in (folder / "adapters", folder) for path in root.glob(f"*/{CONFIG_NAME}")]
    return sorted(set(names), key=_natural)


def _natural(name: str) -> list[tuple[str, int, str]]:
    """Sorts adapter_2 before adapter_10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return [(text, len(number.lstrip("0")), number) for text, number in parts]


def _local(source: str) -> Path:
    """The folder of an adapter or checkpoint; of a hub id, a folder with its configurations."""
    path = _path(source)
    if _exists(path):
        return path
    return Path(_from_hub(source, lambda hub: hub.snapshot_download(source, allow_patterns=list(CONFIGS))))


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # Path.expanduser raises for ~ and a user that does not exist


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # Path.exists raises for names that are too long; ids and names come from files


def _one_file(hub: Any, repository: str) -> str:
    path: str = hub.hf_hub_download(repository, "config.json")
    return path


def _from_hub(source: str, fetch: Callable[[Any], _T]) -> _T:
    """Run a download, and say in our words what went wrong.

    Raises:
        HubError: not a hub id, no such repository or file, no permission, or no network.
    """
    if source.startswith((".", "/", "~")) or not HUB_ID.fullmatch(source):
        raise HubError(
            "Neither a file or folder that exists nor the id of a hub repository.",
            file=source,
            remedy="Check the path.",
        )
    import huggingface_hub
    from huggingface_hub import errors

    network_errors: tuple[type[Exception], ...] = (getattr(errors, "HTTPError", OSError), OSError)  # httpx or requests
    try:
        return fetch(huggingface_hub)
    except errors.GatedRepoError:
        remedy = "Accept its terms on its page, then set HF_TOKEN."
        raise HubError("The repository is gated.", file=source, remedy=remedy) from None
    except errors.RepositoryNotFoundError:
        remedy = "Check the id, or set HF_TOKEN."
        raise HubError("No such repository, or it is private.", file=source, remedy=remedy) from None
    except errors.LocalEntryNotFoundError:
        remedy = "Check the network, or give a local folder."
        raise HubError(
            "The hub cannot be reached, and the file is not in the cache.", file=source, remedy=remedy
        ) from None
    except errors.EntryNotFoundError:
        raise HubError("The repository has no config.json.", file=source, remedy="Choose another one.") from None
    except errors.HFValidationError:
        raise HubError("This is not the id of a hub repository.", file=source, remedy="Check the id.") from None
    except network_errors as problem:
        raise HubError(f"The hub cannot be reached: {problem}", file=source, remedy="Check the network.") from None
