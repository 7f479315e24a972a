"""Base models, adapters and X-LoRA checkpoints for the ordering tools: configurations and headers, never weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from loradesk_engine.errors import AdapterError, ConfigError, HubError, LoradeskError
from loradesk_engine.files import read_json_object
from loradesk_engine.formats.adapter_folder import find_adapter, is_adapter, list_files, place_in, read_place
from loradesk_engine.formats.adapter_place import ALL, CONFIG_NAME, WEIGHTS_NAME, AdapterName, AdapterPlace, folders_in
from loradesk_engine.formats.gguf import read_gguf
from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.formats.hub import HubSource, Resolve, locate, resolve_source
from loradesk_engine.formats.hub_headers import HubHeaders
from loradesk_engine.formats.peft import PeftAdapter, read_adapter
from loradesk_engine.formats.xlora import is_peft_xlora, read_xlora
from loradesk_engine.ordering.finding import ClassifierFacts, PreloadFacts
from loradesk_engine.ordering.modules import linear_modules, match_targets
from loradesk_engine.ordering.schema import PreloadAdapter

MAX_ADAPTERS = 1_000
NOT_HERE = "It has not been downloaded, so it was not looked at."


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
        places: name -> folder of its own, where it is on this computer.
        problems: adapters that could not be read, in words.
    """

    modules: Mapping[str, frozenset[str]]
    base_model_id: str | None = None
    classifier: ClassifierFacts | None = None
    order: tuple[str, ...] | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_base(source: str) -> Base:
    """The configuration of a folder, a config.json, a GGUF file (its header alone) or a hub id.

    Raises:
        ConfigError, FileFormatError: no config.json there, or it or the GGUF file is malformed. HubError: the hub does
            not give it.
    """
    path = locate(source)
    if isinstance(path, HubSource):
        return _read_hub_base(source, path)
    if path.suffix == ".gguf":
        return Base(source, GgufModel(read_gguf(path)).hf_config)
    if path.is_dir():
        return Base(source, read_json_object(path / "config.json", error=ConfigError))
    model_id = str(path.parent) if path.name == "config.json" else source
    return Base(model_id, read_json_object(path, error=ConfigError))


def _read_hub_base(source: str, found: HubSource) -> Base:
    if found.inside.endswith(".gguf"):
        with HubHeaders().on_disk() as resolve:
            return Base(source, GgufModel(read_gguf(resolve(source))).hf_config)
    path = resolve_source(f"{found.repo}/{found.inside}/config.json".replace("//", "/"))
    return Base(source, read_json_object(path, error=ConfigError))


def cached_base(model_id: str, near: Path | None = None) -> Base | None:
    """The configuration of a base that is on this machine; None if it is not. The network is not used.

    Args:
        near: folder that a relative path is looked for in first.
    """
    beside = near / model_id if near is not None and model_id else None
    if beside is not None and os.path.exists(beside / "config.json"):
        return replace(read_base(str(beside)), model_id=model_id)
    try:
        found = locate(model_id) if model_id else None
        if isinstance(found, HubSource):
            path = resolve_source(f"{found.repo}/{found.inside}/config.json".replace("//", "/"), fetch=False)
            return Base(model_id, read_json_object(path, error=ConfigError))
    except HubError:
        return None
    there = found is not None and (found.suffix == ".gguf" or (found / "config.json").is_file())
    return read_base(model_id) if there else None


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


@contextmanager
def finding(*, ask_hub: bool) -> Iterator[Resolve]:
    """What finds the files behind ids.

    Args:
        ask_hub: fetch the headers of what is not downloaded; otherwise only this computer is looked at.
    """
    if not ask_hub:
        yield partial(resolve_source, fetch=False)
        return
    with HubHeaders().on_disk() as resolve:
        yield resolve


def read_loras(
    sources: Mapping[str, str], config: Mapping[str, Any] | None, *, near: Path | None = None, ask_hub: bool = True
) -> Adapters:
    """LoRA adapters by name: folders, safetensors files or hub ids, each of one adapter or of several.

    Args:
        config: of the base; needed where the weights are not here and only target modules are known.
        near: folder that relative paths are looked for in first.

    Raises:
        AdapterError, FileFormatError, ConfigError, HubError: one of them cannot be read.
    """
    modules, bases = {}, []
    with finding(ask_hub=ask_hub) as resolve:
        for name, source in sources.items():
            wanted = AdapterName(name, tuple(sources))
            path = resolve(source, near=near, adapter=wanted)
            modules[name], base = _read_named(path, wanted, config)
            bases.append(base)
    return Adapters(modules, next((base for base in bases if base), None))


def read_repository(source: str, config: Mapping[str, Any] | None) -> Adapters:
    """All adapters of a folder or repository that holds adapters' folders, or the one adapter that it is.

    Raises:
        AdapterError, FileFormatError, ConfigError, HubError: there are none, or none can be read.
    """
    with finding(ask_hub=True) as resolve:
        folder = resolve(source, adapter=ALL)
        files = list_files(folder) if folder.is_dir() else []
        own = source.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
        single = folder.is_file() or CONFIG_NAME in files
        folders = {own: folder} if single else {name: folder / inside for name, inside in folders_in(files).items()}
        return _read_all(dict(list(folders.items())[:MAX_ADAPTERS]), source, config)


def _read_all(folders: Mapping[str, Path], source: str, config: Mapping[str, Any] | None) -> Adapters:
    modules, bases, places, problems = {}, [], {}, []
    for name, folder in folders.items():
        try:
            modules[name], base = _read_lora(folder, config)
        except (LoradeskError, OSError) as problem:
            problems.append(f"{name}: {problem.problem if isinstance(problem, LoradeskError) else problem}")
            continue
        bases.append(base)
        places[name] = str(folder)
    if not modules:
        remedy = "Choose another folder." if problems else f"Choose a folder whose folders hold {CONFIG_NAME}."
        raise AdapterError((*problems, "There are no adapters here.")[0], file=source, remedy=remedy)
    local = os.path.exists(os.path.expanduser(source))
    base_id = next((base for base in bases if base), None)
    return Adapters(modules, base_id, places=places if local else {}, problems=tuple(problems))


def look_at_preloads(
    entries: Sequence[PreloadAdapter],
    config: Mapping[str, Any] | None,
    *,
    near: Path | None,
    among: Sequence[str] = (),
    ask_hub: bool = False,
) -> dict[PreloadAdapter, PreloadFacts]:
    """What lies at the ids of preload adapters.

    Args:
        near: folder of their file, in which relative paths are looked for first.
        among: names of all adapters of the file.
        ask_hub: whether to ask the hub for what is not on this computer.
    """
    names = (*among, *(entry.name for entry in entries))
    found: dict[PreloadAdapter, PreloadFacts] = {}
    with finding(ask_hub=ask_hub) as resolve:
        for entry in dict.fromkeys(entries):
            if entry.name.strip() and entry.adapter_model_id.strip():  # other rules are about those that are empty
                found[entry] = _look_at(entry, names, config, near, resolve, ask_hub)
    return found


def _look_at(
    entry: PreloadAdapter,
    names: tuple[str, ...],
    config: Mapping[str, Any] | None,
    near: Path | None,
    resolve: Resolve,
    ask_hub: bool,
) -> PreloadFacts:
    wanted = AdapterName(entry.name, names)
    try:
        found = locate(entry.adapter_model_id, near)
    except HubError as problem:
        return PreloadFacts(missing=_in_words(problem))
    try:
        path = found if isinstance(found, Path) else resolve(entry.adapter_model_id, near=near, adapter=wanted)
        return PreloadFacts(_read_named(path, wanted, config)[0])
    except HubError as problem:
        return PreloadFacts(problem=_in_words(problem)) if ask_hub else PreloadFacts(unseen=NOT_HERE)
    except LoradeskError as problem:
        return PreloadFacts(problem=_in_words(problem))
    except OSError as problem:
        return PreloadFacts(problem=str(problem))


def _in_words(problem: LoradeskError) -> str:
    return " ".join(part for part in (problem.problem, problem.remedy) if part)


def read_xlora_checkpoint(
    source: str, names: Sequence[str] | None, config: Mapping[str, Any] | None = None
) -> Adapters:
    """An X-LoRA checkpoint: a folder, or a hub id of which configurations and headers are read.

    Args:
        names: the adapters' names, for checkpoints that do not say them.

    Raises:
        AdapterError, FileFormatError, ConfigError, HubError: it cannot be read.
    """
    with finding(ask_hub=True) as resolve:
        return _read_checkpoint(resolve(source), names, config)


def is_xlora(source: str) -> bool:
    """Whether a folder on this computer is an X-LoRA checkpoint, in either format."""
    folder = Path(os.path.expanduser(source))
    if (folder / "xlora_config.json").is_file():
        return True
    try:
        return is_peft_xlora(folder)
    except AdapterError:
        return False


def _read_checkpoint(folder: Path, names: Sequence[str] | None, config: Mapping[str, Any] | None) -> Adapters:
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
    folders = folders_in(list_files(folder))
    wanted = list(dict.fromkeys([*(names or ()), *listed, *folders]))
    modules: dict[str, frozenset[str]] = {}
    bases = []
    for name in wanted:
        found = _find_lora(folder, name, wanted, listed.get(name), config)
        if found is not None:
            modules[name] = found[0]
            bases.append(found[1])
    places = {name: str(folder / inside) for name, inside in folders.items()}
    return Adapters(modules, next((base for base in bases if base), None), classifier, order, places)


def _find_lora(
    folder: Path, name: str, names: Sequence[str], listed: str | None, config: Mapping[str, Any] | None
) -> tuple[frozenset[str], str | None] | None:
    """Modules and base of one adapter of a checkpoint; None when the checkpoint has none of this name."""
    candidates = [folder / "adapters" / name, folder / name] if Path(name).name == name != ".." else []
    if listed is not None:
        candidates = [folder / listed, Path(os.path.expanduser(listed)), *candidates]
    for candidate in candidates:
        if os.path.exists(candidate / CONFIG_NAME):
            return _read_lora(candidate, config)
    try:
        adapter = find_adapter(folder, name, names)
    except (OSError, ValueError):
        return None  # a name that no file can have
    except AdapterError as problem:
        if problem.problem.startswith("No adapter named"):
            return None  # the checker says so, with the names that there are
        raise
    return _facts_of(adapter)


def _read_named(
    source: Path, wanted: AdapterName, config: Mapping[str, Any] | None
) -> tuple[frozenset[str], str | None]:
    """Modules and base of the adapter of a name; `source` is its folder or file, or holds several."""
    if source.is_file() or not source.is_dir():
        return _read_lora(source, config)
    place = place_in(source, wanted, top=is_adapter(source))
    folder = source / Path(place.config).parent
    return _read_lora(folder, config) if _is_usual(place) else _facts_of(read_place(source, place))


def _is_usual(place: AdapterPlace) -> bool:
    """Whether it has the names that PEFT gives, so that its configuration may be there alone."""
    weights = place.weights or WEIGHTS_NAME
    return Path(place.config).name == CONFIG_NAME and Path(weights).name == WEIGHTS_NAME


def _facts_of(adapter: PeftAdapter) -> tuple[frozenset[str], str | None]:
    return frozenset(adapter.modules), adapter.base_model


def _read_lora(source: Path, config: Mapping[str, Any] | None) -> tuple[frozenset[str], str | None]:
    """Modules and base of an adapter: from its weights' header, or from its configuration when they are not here."""
    if source.is_file() or (source / WEIGHTS_NAME).is_file() or not (source / CONFIG_NAME).is_file():
        return _facts_of(read_adapter(source))
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
