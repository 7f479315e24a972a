"""Rules about `layers`, the classifier that reads it and the layers that a quantized base allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from loradesk_engine.ordering.finding import ClassifierFacts, Finding, Severity
from loradesk_engine.ordering.modules import quantized_names, target_names, unsupported_on_quantized
from loradesk_engine.ordering.schema import pointer
from loradesk_engine.ordering.subject import Subject, plain_path
from loradesk_engine.ordering.words import closest, counted, listed

DISTORTED = "On a 4-bit base the X-LoRA classifier's signal is distorted. 8 bits keep it."


def config(subject: Subject) -> Iterator[Finding]:
    """`config-unsupported`: the layers cannot be compared with the model's."""
    if subject.config_problem is not None:
        message = f"The layers cannot be compared with the model's configuration. {subject.config_problem}"
        yield Finding("config-unsupported", "warning", "/layers", message)


def presence(subject: Subject) -> Iterator[Finding]:
    """`layers-missing`, `layers-empty`: X-LoRA reads its scalings by them."""
    if subject.context.is_xlora and not subject.ordering.layers:
        rule = "layers-missing" if subject.ordering.layers is None else "layers-empty"
        message = "X-LoRA needs layers: which module reads which layer of the scalings."
        yield Finding(rule, "error", "/layers", message, subject.renumbering)


def indices(subject: Subject) -> Iterator[Finding]:
    """`layer-index-duplicate`, `layer-index-gap`: the indices must be 0 to n-1, each once."""
    layers = subject.ordering.layers
    if not layers:
        return
    counts = Counter(layers.values())
    repeated = [path for path, index in layers.items() if counts[index] > 1]
    if repeated:
        shown = [f"{layers[path]} ({path})" for path in repeated]
        message = f"{counted(len(repeated), 'layer')} share an index with another: {listed(shown)}."
        yield _finding("layer-index-duplicate", subject.index_severity, message, repeated, subject)
    outside = [path for path, index in layers.items() if not 0 <= index < len(layers)]
    if outside:
        shown = [f"{layers[path]} ({path})" for path in outside]
        message = f"The indices of {counted(len(layers), 'layer')} are not 0 to {len(layers) - 1:,}: {listed(shown)}."
        yield _finding("layer-index-gap", subject.index_severity, message, outside, subject)


def against_model(subject: Subject) -> Iterator[Finding]:
    """`layer-not-in-model`, `layer-order`."""
    layers, linears = subject.ordering.layers, subject.linears
    if not layers or linears is None or subject.context.config is None:
        return
    rank = {path: index for index, path in enumerate(linears)}
    foreign = [path for path in layers if path not in rank]
    if foreign:
        hint = _path_hint(foreign[0], rank, target_names(subject.context.config))
        message = f"The model has no linear for {counted(len(foreign), 'layer')}: {listed(foreign)}.{hint}"
        yield _finding("layer-not-in-model", "error", message, foreign, subject)
    by_index = sorted((path for path in layers if path in rank), key=lambda path: layers[path])
    late = [path for before, path in pairwise(by_index) if rank[path] < rank[before]]
    if late and len(set(layers.values())) == len(layers):
        message = (
            f"The layers are not numbered in the model's own order, from {late[0]} on. "
            "X-LoRA checkpoints are trained in that order."
        )
        yield _finding("layer-order", "warning", message, late, subject)


def against_adapters(subject: Subject) -> Iterator[Finding]:
    """`layer-missing`, `layer-unadapted`, `adapter-foreign`."""
    layers, adapted = subject.ordering.layers, subject.adapted
    if adapted is None:
        return
    foreign = adapted.difference(subject.linears) if subject.linears is not None else frozenset()
    if foreign:
        owners = _owners(subject, foreign)
        message = f"{listed(owners)} adapt modules that the model does not have: {listed(sorted(foreign))}."
        yield Finding("adapter-foreign", "error", "/order", message)
    if not layers:
        return
    absent = adapted.difference(layers) - foreign
    if absent:
        ordered = [path for path in subject.linears or sorted(absent) if path in absent]
        owners = _owners(subject, absent)
        message = (
            f"{counted(len(absent), 'module')} adapted by {listed(owners)} missing from layers: {listed(ordered)}."
        )
        yield Finding("layer-missing", subject.index_severity, "/layers", message, subject.renumbering)
    idle = [path for path in layers if path not in adapted]
    if idle:
        message = f"No adapter has weights for {counted(len(idle), 'layer')}: {listed(idle)}."
        yield _finding("layer-unadapted", "warning", message, idle, subject)


def classifier(subject: Subject) -> Iterator[Finding]:
    """`classifier-outputs`: the checkpoint's classifier and the file must agree."""
    facts, order, layers = subject.context.xlora, subject.ordering.order, subject.ordering.layers
    if facts is None or not order or (facts.layerwise and not layers):
        return
    adapters, count = len(order), len(layers or ())
    expected = adapters * count if facts.layerwise else adapters
    if facts.outputs == expected:
        return
    meaning = f"{counted(adapters, 'adapter')} x {counted(count, 'layer')}" if facts.layerwise else "one an adapter"
    message = (
        f"The classifier has {facts.outputs:,} outputs, the file asks for {expected:,} ({meaning}). "
        f"{_cause(facts, adapters, count)}"
    )
    fix = subject.renumbering
    mends = facts.layerwise and fix is not None and len(fix.changes["layers"]) * adapters == facts.outputs
    yield Finding("classifier-outputs", "error", "/layers" if mends else "/order", message, fix if mends else None)


def quantized(subject: Subject) -> Iterator[Finding]:
    """`quantized-layer`, `quantized-4bit`."""
    context, layers = subject.context, subject.ordering.layers
    if context.quantized is None:
        return
    modules = list(layers) if layers is not None else sorted(subject.adapted or ())
    offending = unsupported_on_quantized(modules, context.config)
    if offending:
        names = list(dict.fromkeys(path.partition(".layers.")[2].partition(".")[2] or path for path in offending))
        supported = ", ".join(quantized_names(context.config))
        message = f"On a quantized base adapters cannot sit on {listed(names)}. Supported are {supported}."
        places = tuple(pointer("layers", path) for path in offending) if layers is not None else ("/layers",)
        yield Finding("quantized-layer", "error", places[0], message, None, places)
    if context.is_xlora and context.bits is not None and context.bits <= 4:
        yield Finding("quantized-4bit", "warning", "/base_model_id", DISTORTED)


def _finding(rule: str, severity: Severity, message: str, paths: Sequence[str], subject: Subject) -> Finding:
    places = tuple(pointer("layers", path) for path in paths)
    return Finding(rule, severity, places[0], message, subject.renumbering, places)


def _path_hint(path: str, known: Mapping[str, int], targets: Sequence[str]) -> str:
    if plain_path(path) in known:
        return f" Did you mean {plain_path(path)!r}?"
    head, dot, last = path.rpartition(".")
    near = None if last in targets else closest(last, targets)
    return f" Did you mean {head + dot + near!r}?" if near else ""


def _owners(subject: Subject, paths: frozenset[str]) -> list[str]:
    """Names of the adapters that adapt one of the paths."""
    modules = subject.adapter_modules
    return [name for name, adapted in modules.items() if not paths.isdisjoint(adapted)]


def _cause(facts: ClassifierFacts, adapters: int, layers: int) -> str:
    """The likely reason why the counts differ."""
    if not facts.layerwise:
        if layers and facts.outputs == adapters * layers:
            return "It is probably layerwise: set layerwise_scalings to true in the X-LoRA configuration."
        return f"order should name {counted(facts.outputs, 'adapter')}, or the file belongs to another checkpoint."
    if facts.outputs == adapters:
        return "It is probably not layerwise: set layerwise_scalings to false in the X-LoRA configuration."
    causes = []
    if facts.outputs % layers == 0:
        causes.append(f"order should name {counted(facts.outputs // layers, 'adapter')}")
    if facts.outputs % adapters == 0:
        modules = counted(facts.outputs // adapters, "module")
        causes.append(f"layers should hold {modules} (other target modules than in training?)")
    if not causes:
        return "The file probably belongs to another checkpoint."
    reasons = ", or ".join(causes)
    return f"Probably {reasons}."
