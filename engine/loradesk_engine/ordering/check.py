"""The checker: all rules over one ordering file. It never raises, whatever the file holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike

from loradesk_engine.errors import OrderingError
from loradesk_engine.ordering import rules_layers, rules_names
from loradesk_engine.ordering.finding import CheckContext, ClassifierFacts, Finding, Fix, Mode, Severity
from loradesk_engine.ordering.schema import OrderingFile, Salvage, parse_pointer, pointer
from loradesk_engine.ordering.subject import Subject
from loradesk_engine.ordering.words import SHOWN, counted, shortened

__all__ = [
    "RULES",
    "CheckContext",
    "ClassifierFacts",
    "Finding",
    "Fix",
    "Mode",
    "Severity",
    "check",
    "check_salvage",
    "raise_errors",
]

RULES: Mapping[str, str] = {
    "structure": "A value is not of the kind that the format has there.",
    "base-missing": "base_model_id is absent or empty.",
    "base-mismatch": "base_model_id is not the model that is loaded.",
    "key-misspelt": "An unknown key looks like one that the format has.",
    "order-missing": "X-LoRA without order.",
    "order-empty": "X-LoRA with an empty order.",
    "order-name-empty": "A name in order is empty.",
    "order-duplicate": "A name is twice in order.",
    "order-unknown": "A name in order is no adapter that can be found.",
    "order-incomplete": "An adapter of the X-LoRA checkpoint is not in order.",
    "order-not-preloaded": "LoRA: a name in order is not among preload_adapters.",
    "name-contained": "An adapter's name is part of another's.",
    "name-path": "An adapter's name cannot be a file's name.",
    "preload-name-empty": "A preload adapter has no name.",
    "preload-id-empty": "A preload adapter has no adapter_model_id.",
    "preload-duplicate": "Two preload adapters share a name.",
    "preload-broken": "What lies at a preload adapter's adapter_model_id is no adapter of its name.",
    "preload-missing": "There is nothing at a preload adapter's adapter_model_id on this computer.",
    "preload-ignored": "preload_adapters in a file for X-LoRA.",
    "config-unsupported": "The base's configuration cannot be used to check layers.",
    "layers-missing": "X-LoRA without layers.",
    "layers-empty": "X-LoRA with empty layers.",
    "layer-index-duplicate": "Two layers have the same index.",
    "layer-index-gap": "The indices are not 0 to n-1.",
    "layer-not-in-model": "The model has no such module.",
    "layer-order": "The indices do not follow the model's own order of modules.",
    "layer-missing": "A module that an adapter adapts is not in layers.",
    "layer-unadapted": "A module in layers that no adapter adapts.",
    "adapter-foreign": "An adapter adapts modules that the model does not have.",
    "classifier-outputs": "The classifier's outputs are not as many as order and layers ask for.",
    "quantized-layer": "A layer that adapters cannot sit on when the base is quantized.",
    "quantized-4bit": "X-LoRA on a 4-bit base.",
}
"""Rule -> what it finds."""

_CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (
    rules_names.base,
    rules_names.keys,
    rules_names.order,
    rules_names.names,
    rules_names.preloads,
    rules_layers.config,
    rules_layers.presence,
    rules_layers.indices,
    rules_layers.against_model,
    rules_layers.against_adapters,
    rules_layers.classifier,
    rules_layers.quantized,
)

_RANK = {"error": 0, "warning": 1, "info": 2}


def check(ordering: OrderingFile, context: CheckContext | None = None) -> list[Finding]:
    """What is wrong with a file, errors first. What the context does not say is not checked."""
    subject = Subject(ordering, context or CheckContext())
    findings = [finding for rule in _CHECKS for finding in rule(subject)]
    return sorted(findings, key=lambda finding: _RANK[finding.severity])


def check_salvage(salvage: Salvage, context: CheckContext | None = None) -> list[Finding]:
    """What is wrong with a file whose structure may be wrong, too: the check goes on with what can be read.

    Findings of the rule `structure` come first. What is found under a key that could not be read is left out, and
    nothing is proposed while there is one. Positions are the salvage's.
    """
    structure = [
        Finding("structure", "error", place, " ".join(part for part in (problem.problem, problem.remedy) if part))
        for place, problem in salvage.problems
    ]
    if not structure:
        return check(salvage.ordering, context)
    unread = {pointer(parse_pointer(finding.place)[0]) for finding in structure}
    rest = [
        finding
        for finding in check(salvage.ordering, context)
        if pointer(*parse_pointer(finding.place)[:1]) not in unread
    ]
    return structure + [replace(finding, fix=None) for finding in rest]


def raise_errors(findings: Iterable[Finding], file: str | PathLike[str] | None = None) -> None:
    """Refuse a file that has errors.

    Raises:
        OrderingError: the first error; its remedy has the messages of the others.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    first = errors[0]
    remedies = [f"Proposed: {first.fix.title}."] if first.fix is not None else []
    if len(errors) > 1:
        others = " ".join(f"[{error.rule}] {shortened(error.message)}" for error in errors[1 : 1 + SHOWN])
        number = counted(len(errors) - 1, "more error")
        remedies.append(f"There {'is' if len(errors) == 2 else 'are'} {number}: {others}")
    raise OrderingError(
        first.message, file=file, field=f"{first.place} [{first.rule}]", remedy=" ".join(remedies) or None
    )
