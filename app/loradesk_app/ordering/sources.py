"""Base models and adapters that a file is made for or checked against. Everything here runs off the GUI thread."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loradesk_engine.errors import AdapterError, HubError, LoradeskError
from loradesk_engine.ordering.finding import ClassifierFacts
from loradesk_engine.ordering.modules import adaptable_modules, family_of, linear_modules, text_part


@dataclass(frozen=True)
class BaseFacts:
    """A base model's configuration.

    Attributes:
        model_id: what an ordering file calls it.
        config: its config.json.
        linears: paths of its linears in order; empty when the architecture is not supported.
        modules: those and the embedding: what an ordering file may number.
        problem: why `linears` is empty.
    """

    model_id: str
    config: Mapping[str, Any]
    linears: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        """`llama, 32 blocks, 225 linears`, or what is wrong."""
        if self.problem:
            return self.problem
        blocks = text_part(self.config).get("num_hidden_layers")
        return f"{family_of(self.config).model_type}, {blocks:,} blocks, {len(self.linears):,} linears"


@dataclass(frozen=True)
class FoundAdapters:
    """Adapters that were found in a folder or repository.

    Attributes:
        source: where.
        modules: name -> paths of the modules it adapts.
        places: name -> its own folder, where it is on this computer; the others are found in `source` by name.
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


def base_on_disk(model_id: str, near: Path | None = None) -> BaseFacts | None:
    """The configuration if it is on this computer; the network is not used. None also when it cannot be read."""
    from loradesk_engine.cli.ordering_sources import cached_base

    try:
        base = cached_base(model_id.strip(), near)
    except (LoradeskError, OSError, ValueError):
        return None
    return None if base is None else _facts(base)


def find_adapters(source: str, config: Mapping[str, Any] | None = None) -> FoundAdapters:
    """Adapters of an X-LoRA checkpoint, of a folder or repository that holds adapters' folders, or one adapter alone.

    Raises:
        LoradeskError: nothing there, or it cannot be read.
    """
    from loradesk_engine.cli.ordering_sources import is_xlora, read_repository, read_xlora_checkpoint

    source = source.strip()
    local = os.path.exists(os.path.expanduser(source))
    try:
        if local and not is_xlora(source):
            found = read_repository(source, config)
        else:
            found = read_xlora_checkpoint(source, None, config)
    except (AdapterError, HubError):
        if local:
            raise
        found = read_repository(source, config)  # a repository's files show what it is
    return FoundAdapters(source, found.modules, found.places, found.order, found.classifier, found.problems)


def _facts(base: Any) -> BaseFacts:
    try:
        return BaseFacts(base.model_id, base.config, linear_modules(base.config), adaptable_modules(base.config))
    except LoradeskError as problem:
        return BaseFacts(base.model_id, base.config, problem=f"{problem.problem} {problem.remedy or ''}".strip())
