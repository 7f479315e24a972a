"""From load settings to a mixture: the ordering file is read, everything it names is found and checked, then
stacked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError, OrderingError
from loradesk_engine.formats.adapter_folder import find_adapter, read_named
from loradesk_engine.formats.adapter_place import CONFIG_NAME, AdapterName
from loradesk_engine.formats.hub import Progress, Resolve, resolve_source
from loradesk_engine.formats.peft import PeftAdapter, read_adapter
from loradesk_engine.formats.xlora import XLoraCheckpoint, read_xlora
from loradesk_engine.model.base import BaseSource
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.ordering.check import check, raise_errors
from loradesk_engine.ordering.finding import CheckContext, ClassifierFacts
from loradesk_engine.ordering.modules import number_layers
from loradesk_engine.ordering.rules_layers import DISTORTED
from loradesk_engine.ordering.schema import OrderingFile


@dataclass(frozen=True)
class LoadedAdapters:
    """The adapters of a model.

    Attributes:
        mixture: all of them.
        classifier: in X-LoRA mode.
        active: name -> weight at first.
        layer_paths: paths of the adapted linears; index = layer axis of the scalings.
        warnings: sentences the user should read.
    """

    mixture: Mixture
    classifier: Classifier | None
    active: Mapping[str, float]
    layer_paths: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class FoundAdapters:
    """What the settings and the ordering file name, its headers read, its weights not yet.

    Attributes:
        ordering: the ordering file.
        adapters: name -> adapter, in the order of the scalings' last axis.
        sources: name -> folder or hub id.
        checkpoint: in X-LoRA mode.
    """

    ordering: OrderingFile | None
    adapters: Mapping[str, PeftAdapter]
    sources: Mapping[str, str]
    checkpoint: XLoraCheckpoint | None = None


def find_adapters(settings: LoadSettings, progress: Progress, *, resolve: Resolve = resolve_source) -> FoundAdapters:
    """Find the adapters and read their headers.

    Args:
        resolve: gives the local path of an adapter or checkpoint; the default downloads it where it has to.

    Raises:
        OrderingError, AdapterError, FileFormatError, HubError: something is missing or malformed; names file, field and
            remedy.
        Cancelled: from `progress`.
    """
    ordering = OrderingFile.read(settings.ordering) if settings.ordering else None
    if settings.mode == "xlora":
        return _find_xlora(settings, ordering, progress, resolve)
    return _find_lora(settings, ordering, progress, resolve)


def load_adapters(settings: LoadSettings, decoder: Decoder, base: BaseSource, progress: Progress) -> LoadedAdapters:
    """Load what the settings and the ordering file name.

    Args:
        base: what the decoder was built from, for the ordering file's check.

    Raises:
        OrderingError, AdapterError, FileFormatError, HubError: something does not fit; names file, field and remedy.
        Cancelled: from `progress`.
    """
    found = find_adapters(settings, progress)
    warnings = _check(settings, base, found) + tuple(
        f"Adapter {name}: {adapter.warning}" for name, adapter in found.adapters.items() if adapter.warning
    )
    if found.checkpoint is not None and found.checkpoint.warning is not None:
        warnings += (found.checkpoint.warning,)
    mixture = _stack(decoder, base, found, progress)
    warnings += tuple(
        f"Adapter {adapter.name}: {CONFIG_NAME} adapts {len(adapter.missing):,} modules that are not in "
        f"{found.adapters[adapter.name].weights_file}, {adapter.missing[0]} first; the adapter changes nothing there."
        for adapter in mixture.adapters
        if adapter.missing
    )
    if found.checkpoint is not None:
        return _with_classifier(found, found.checkpoint, decoder, mixture, warnings)
    paths = mixture.adapted_paths()
    mixture.set_layers(number_layers(paths))
    if found.ordering is not None:
        active = dict.fromkeys(found.ordering.order or (), 1.0)
    else:  # one adapter was loaded to be used; of several the user chooses
        active = dict.fromkeys(found.adapters, 1.0) if len(found.adapters) == 1 else {}
    return LoadedAdapters(mixture, None, active, paths, warnings)


def add_adapter(mixture: Mixture, adapter: AdapterSource, progress: Progress, token: str | None = None) -> None:
    """Put one more LoRA adapter into the mixture of a loaded model. Raises as `load_adapters`; nothing is changed
    then.
    """
    wanted = AdapterName(adapter.name)
    source = resolve_source(adapter.source, token=token, progress=progress, adapter=wanted)
    found = read_named(source, wanted)
    mixture.add(adapter.name, found, adapter.source)


def _find_lora(
    settings: LoadSettings, ordering: OrderingFile | None, progress: Progress, resolve: Resolve
) -> FoundAdapters:
    near = Path(settings.ordering).parent if settings.ordering else None
    sources = _lora_sources(settings, ordering)
    found = {}
    for number, (name, source) in enumerate(sources.items()):
        progress(f"Reading adapter {name}", number / len(sources))
        wanted = AdapterName(name, tuple(sources))
        place = resolve(source, near=near, token=settings.token, progress=progress, adapter=wanted)
        found[name] = read_named(place, wanted)
    return FoundAdapters(ordering, found, sources)


def _lora_sources(settings: LoadSettings, ordering: OrderingFile | None) -> dict[str, str]:
    """Name -> folder or hub id: what is preloaded, what is given, and the repository for what `order` names beside."""
    preloads = (ordering.preload_adapters or ()) if ordering is not None else ()
    sources = {item.name: item.adapter_model_id for item in preloads}
    for given in settings.adapters:
        if given.name in sources:
            raise AdapterError(
                "Two adapters have this name.", field=given.name, remedy="Give one of them another name."
            )
        sources[given.name] = given.source
    if settings.repository is None:
        return sources
    order = (ordering.order or ()) if ordering is not None else ()
    if not order:
        raise OrderingError(
            "A repository of adapters needs an ordering file whose order names those to load.",
            file=settings.ordering,
            field="order",
            remedy="Add the names to order, or give each adapter by itself.",
        )
    return sources | {name: settings.repository for name in order if name not in sources}


def _find_xlora(
    settings: LoadSettings, ordering: OrderingFile | None, progress: Progress, resolve: Resolve
) -> FoundAdapters:
    if settings.xlora is None:
        raise AdapterError("No X-LoRA checkpoint was chosen.", field="xlora", remedy="Choose its folder or hub id.")
    checkpoint = read_xlora(resolve(settings.xlora, token=settings.token, progress=progress), settings.xlora_relu)
    names = _xlora_names(settings, ordering, checkpoint)
    found = {}
    for number, name in enumerate(names):
        progress(f"Reading adapter {name}", number / len(names))
        found[name] = _xlora_adapter(checkpoint, name, names, settings, progress, resolve)
        _refuse_options(name, found[name])
    sources = {name: str(adapter.weights_file.parent) for name, adapter in found.items()}
    return FoundAdapters(ordering, found, sources, checkpoint)


def _with_classifier(
    found: FoundAdapters,
    checkpoint: XLoraCheckpoint,
    decoder: Decoder,
    mixture: Mixture,
    warnings: tuple[str, ...],
) -> LoadedAdapters:
    """The adapters of an X-LoRA model, with what mixes them."""
    ordering = found.ordering
    layers = (
        dict(ordering.layers) if ordering is not None and ordering.layers else number_layers(mixture.adapted_paths())
    )
    mixture.set_layers(layers)
    classifier = Classifier(
        checkpoint,
        hidden_size=decoder.config.hidden_size,
        layers=len(layers),
        adapters=len(found.adapters),
        device=decoder.device,
        dtype=decoder.dtype,
    )
    paths = tuple(sorted(layers, key=lambda path: layers[path]))
    return LoadedAdapters(mixture, classifier, dict.fromkeys(found.adapters, 1.0), paths, warnings)


def _xlora_names(settings: LoadSettings, ordering: OrderingFile | None, checkpoint: XLoraCheckpoint) -> tuple[str, ...]:
    """The adapters in the order of training."""
    if ordering is not None:
        if not ordering.order:
            raise OrderingError(
                "X-LoRA needs the adapters in the order of the training.",
                file=settings.ordering,
                field="order",
                remedy="Add `order` with all adapter names.",
            )
        return tuple(ordering.order)
    if checkpoint.adapters:
        return tuple(checkpoint.adapters)
    raise OrderingError(
        "This checkpoint does not say the order of its adapters.",
        file=checkpoint.folder,
        remedy="Choose its ordering file.",
    )


def _xlora_adapter(
    checkpoint: XLoraCheckpoint,
    name: str,
    names: tuple[str, ...],
    settings: LoadSettings,
    progress: Progress,
    resolve: Resolve,
) -> PeftAdapter:
    """An adapter by the checkpoint's map, by its files, or by hub id.

    The map's paths are those of the machine it was trained on, so what lies in the checkpoint's folder comes first.
    """
    listed = (checkpoint.adapters or {}).get(name)
    if settings.repository is not None:
        wanted = AdapterName(name, names)
        near = Path(settings.ordering).parent if settings.ordering else None
        place = resolve(settings.repository, near=near, token=settings.token, progress=progress, adapter=wanted)
        return read_named(place, wanted)
    if listed is not None:
        own = listed.split("/", 2)[2:]  # the checkpoint may be a copy of the repository that the id names
        places = [checkpoint.folder / listed, *(checkpoint.folder / part for part in own), Path(listed).expanduser()]
        for candidate in places:
            if (candidate / CONFIG_NAME).is_file():
                return read_adapter(candidate)
    try:
        return find_adapter(checkpoint.folder, name, names)
    except AdapterError:
        if listed is None or Path(listed).is_absolute() or listed.startswith("."):
            raise
    wanted = AdapterName(name, names)
    return read_named(resolve(listed, token=settings.token, progress=progress, adapter=wanted), wanted)


def _refuse_options(name: str, adapter: PeftAdapter) -> None:
    """X-LoRA is defined for `B A x` alone: PEFT refuses DoRA there and does not scale biases."""
    if adapter.options:
        raise AdapterError(
            f"The adapter {name!r} was trained with {adapter.options[0]}, which X-LoRA does not support.",
            file=adapter.weights_file,
            field=adapter.options[0],
            remedy="Load it as a LoRA adapter, or train the X-LoRA on plain LoRA adapters.",
        )


def _check(settings: LoadSettings, base: BaseSource, found: FoundAdapters) -> tuple[str, ...]:
    """Check the ordering file against what was found; errors are raised, warnings returned."""
    checkpoint = found.checkpoint
    if found.ordering is None:
        return (DISTORTED,) if checkpoint is not None and base.bits is not None and base.bits <= 4 else ()
    facts = None
    if checkpoint is not None:
        facts = ClassifierFacts(
            checkpoint.config.layerwise_scalings,
            checkpoint.outputs,
            tuple(checkpoint.adapters) if checkpoint.adapters and checkpoint.form == "peft" else None,
        )
    findings = check(
        found.ordering,
        CheckContext(
            file=settings.ordering,
            base_model_id=settings.base,
            config=base.hf_config,
            quantized=base.quantized,
            bits=base.bits,
            adapter_modules={name: frozenset(adapter.modules) for name, adapter in found.adapters.items()},
            xlora=facts,
            mode="xlora" if checkpoint is not None else "lora",
        ),
    )
    raise_errors(findings, settings.ordering)
    return tuple(finding.message for finding in findings if finding.severity == "warning")


def _stack(decoder: Decoder, base: BaseSource, found: FoundAdapters, progress: Progress) -> Mixture:
    weight = 1.0 if found.checkpoint is None else found.checkpoint.config.global_scaling_weight
    mixture = Mixture(decoder.projections, decoder.device, decoder.dtype, weight, read_base=_reader(base))
    for number, (name, adapter) in enumerate(found.adapters.items()):
        progress(f"Loading adapter {name}", number / len(found.adapters))
        mixture.add(name, adapter, found.sources[name])
    return mixture


def _reader(base: Any) -> Callable[[], BaseSource]:
    """What reads the base's headers once more. It does not hold the base itself, whose open files would keep mapped all
    that the load has read of them.
    """
    given = {field.name: getattr(base, field.name) for field in dataclasses.fields(base) if field.init}
    kind: Callable[..., BaseSource] = type(base)
    return functools.partial(kind, **given)
