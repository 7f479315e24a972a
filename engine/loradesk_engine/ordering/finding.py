"""What the checker is told, and what it tells: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

Severity = Literal["error", "warning", "info"]
Mode = Literal["lora", "xlora"]


@dataclass(frozen=True)
class Fix:
    """A proposed change of an ordering file.

    Attributes:
        title: what it does, for a button or a prompt.
        changes: arguments of `OrderingFile.replace`.
    """

    title: str
    changes: Mapping[str, Any] = field(repr=False)

    def apply(self, ordering: OrderingFile) -> OrderingFile:
        """The changed file."""
        return ordering.replace(**self.changes)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    Attributes:
        rule: identifier, a key of `check.RULES`.
        severity: an error keeps the model from loading or makes its answers wrong.
        place: JSON pointer into the file, such as `/order/2`; the first of `places`.
        message: one or two sentences.
        fix: a change that removes the finding, where one can be known.
        places: all the places concerned.
    """

    rule: str
    severity: Severity
    place: str
    message: str
    fix: Fix | None = None
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassifierFacts:
    """What is known of an X-LoRA classifier.

    Attributes:
        layerwise: it has one output for each adapter and layer, otherwise one for each adapter.
        outputs: rows of its last linear.
        order: the adapters' names in training order, where the checkpoint says it (PEFT format).
    """

    layerwise: bool
    outputs: int
    order: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PreloadFacts:
    """What lies at the id of a preload adapter.

    Attributes:
        modules: paths of the modules that its weights adapt; None where it could not be read.
        problem: why what lies there cannot be loaded.
        missing: why there is nothing on this computer.
        unseen: why nothing is known of it, which a load may fetch.
    """

    modules: frozenset[str] | None = None
    problem: str = ""
    missing: str = ""
    unseen: str = ""


@dataclass(frozen=True)
class CheckContext:
    """What the file is checked against; everything is optional, and what is not known is not checked.

    Attributes:
        file: the ordering file's path, for messages.
        base_model_id: hub id or path of the base that is loaded.
        config: its config.json.
        adapter_modules: adapter name -> paths of the modules its weights adapt; the names that exist beside the file's
            preload adapters.
        xlora: facts of the classifier; given, the mode is X-LoRA.
        mode: `lora` or `xlora`, if known.
        quantized: how the base is quantized.
        bits: of the quantized weights, if known.
        preloads: preload adapter of the file -> what lies at its id.
    """

    file: str | None = None
    base_model_id: str | None = None
    config: Mapping[str, Any] | None = None
    adapter_modules: Mapping[str, frozenset[str]] | None = None
    xlora: ClassifierFacts | None = None
    mode: Mode | None = None
    quantized: Literal["bnb", "gguf"] | None = None
    bits: int | None = None
    preloads: Mapping[PreloadAdapter, PreloadFacts] | None = None

    @property
    def is_xlora(self) -> bool:
        return self.mode == "xlora" or (self.mode is None and self.xlora is not None)
