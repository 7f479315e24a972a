"""Base models and adapters that a file is made for or checked against. Everything here runs off the GUI thread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loradesk_engine.errors import AdapterError, LoradeskError
from loradesk_engine.ordering.finding import ClassifierFacts
from loradesk_engine.ordering.modules import linear_modules, model_type, text_part

MAX_ADAPTERS = 1_000
_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class BaseFacts:
    """A base model's configuration.

    Attributes:
        model_id: what an ordering file calls it.
        config: its config.json.
        linears: paths of its linears in order; empty when the architecture is not supported.
        problem: why `linears` is empty.
    """

    model_id: str
    config: Mapping[str, Any]
    linears: tuple[str, ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        """`llama, 32 blocks, 225 linears`, or what is wrong."""
        if self.problem:
            return self.problem
        blocks = text_part(self.config).get("num_hidden_layers")
        return f"{model_type(self.config)}, {blocks:,} blocks, {len(self.linears):,} linears"


@dataclass(frozen=True)
class FoundAdapters:
    """Adapters that were found in a folder or repository.

    Attributes:
        source: where.
        modules: name -> paths of the modules it adapts.
        places: name -> folder or hub id, where it has one of its own.
        order: names in training order, where the checkpoint says it.
        classifier: of an X-LoRA checkpoint.
        problems: adapters that could not be read, in words.
    """

    source: str
    modules: Mapping[str, frozenset[str]]
    places: Mapping[str, str] = field(default_factory=dict)
    order: tuple[str, ...] | None = None
    classifier: ClassifierFacts | None = None
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return self.order or tuple(self.modules)


def read_base_facts(source: str) -> BaseFacts:
    """The configuration of a folder, a config.json or a hub id. Raises LoradeskError."""
    from loradesk_engine.cli.ordering_sources import read_base

    return _facts(read_base(source.strip()))


def base_on_disk(model_id: str) -> BaseFacts | None:
    """The configuration if it is on this computer; the network is not used. None also when it cannot be read."""
    from loradesk_engine.cli.ordering_sources import cached_base

    try:
        base = cached_base(model_id.strip())
    except (LoradeskError, OSError, ValueError):
        return None
    return None if base is None else _facts(base)


def find_adapters(source: str, config: Mapping[str, Any] | None = None) -> FoundAdapters:
    """Adapters of an X-LoRA checkpoint, of a folder that holds adapters' folders, or one adapter alone.

    Raises:
        LoradeskError: nothing there, or it cannot be read.
    """
    from loradesk_engine.cli.ordering_sources import read_loras, read_xlora_checkpoint

    source = source.strip()
    folder = Path(os.path.expanduser(source))
    if os.path.isdir(folder) and not _is_xlora(folder):
        return _find_loras(source, folder, config)
    try:
        found = read_xlora_checkpoint(source, None, config)
    except AdapterError as problem:
        if not problem.problem.startswith("No xlora_config.json"):
            raise
        name = source.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
        lora = read_loras({name: source}, config)
        return FoundAdapters(source, lora.modules, {name: source})
    places = {name: str(place) for name in found.modules if (place := _folder_of(folder, name)) is not None}
    return FoundAdapters(source, found.modules, places, found.order, found.classifier)


def _facts(base: Any) -> BaseFacts:
    try:
        return BaseFacts(base.model_id, base.config, linear_modules(base.config))
    except LoradeskError as problem:
        return BaseFacts(base.model_id, base.config, problem=f"{problem.problem} {problem.remedy or ''}".strip())


def _is_xlora(folder: Path) -> bool:
    if (folder / "xlora_config.json").is_file():
        return True
    try:
        return '"XLORA"' in (folder / _CONFIG).read_text("utf-8", "replace")[:100_000]
    except OSError:
        return False


def _folder_of(folder: Path, name: str) -> Path | None:
    candidates = (folder / "adapters" / name, folder / name)
    return next((path for path in candidates if os.path.exists(path / _CONFIG)), None)


def _find_loras(source: str, folder: Path, config: Mapping[str, Any] | None) -> FoundAdapters:
    from loradesk_engine.cli.ordering_sources import read_loras

    if (folder / _CONFIG).is_file():
        folders = [folder]
    else:
        patterns = (f"*/{_CONFIG}", f"adapters/*/{_CONFIG}")
        found = {path.parent for pattern in patterns for path in folder.glob(pattern)}
        folders = sorted(found, key=lambda path: path.name)[:MAX_ADAPTERS]
    modules: dict[str, frozenset[str]] = {}
    places: dict[str, str] = {}
    problems = []
    for path in folders:
        try:
            lora = read_loras({path.name: str(path)}, config)
        except (LoradeskError, OSError) as problem:
            problems.append(f"{path.name}: {problem.problem if isinstance(problem, LoradeskError) else problem}")
            continue
        modules |= lora.modules
        places[path.name] = str(path)
    if not modules and problems:
        raise AdapterError(problems[0], file=folder, remedy="Choose another folder.")
    if not modules:
        raise AdapterError(
            "There are no adapters here.", file=folder, remedy=f"Choose a folder whose folders hold {_CONFIG}."
        )
    return FoundAdapters(source, modules, places, problems=tuple(problems))
