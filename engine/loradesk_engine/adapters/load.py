"""From load settings to a mixture: the ordering file is read, everything it names is found and checked, then
stacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError, OrderingError
from loradesk_engine.formats.hub import Progress, resolve_source
from loradesk_engine.formats.peft import CONFIG_NAME, PeftAdapter, read_adapter
from loradesk_engine.formats.xlora import XLoraCheckpoint, find_adapter, read_xlora
from loradesk_engine.model.base import BaseSource
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.ordering.check import check, raise_errors
from loradesk_engine.ordering.finding import CheckContext, ClassifierFacts
from loradesk_engine.ordering.modules import number_layers
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


def load_adapters(settings: LoadSettings, decoder: Decoder, base: BaseSource, progress: Progress) -> LoadedAdapters:
    """Load what the settings and the ordering file name.

    Args:
        base: what the decoder was built from, for the ordering file's check.

    Raises:
        OrderingError, AdapterError, FileFormatError, HubError: something does not fit; names file, field and remedy.
        Cancelled: from `progress`.
    """
    ordering = OrderingFile.read(settings.ordering) if settings.ordering else None
    if settings.mode == "xlora":
        return _load_xlora(settings, ordering, decoder, base, progress)
    return _load_lora(settings, ordering, decoder, base, progress)


def add_adapter(mixture: Mixture, adapter: AdapterSource, progress: Progress, token: str | None = None) -> None:
    """Put one more LoRA adapter into the mixture of a loaded model. Raises as `load_adapters`; nothing is changed
    then.
    """
    found = read_adapter(resolve_source(adapter.source, token=token, progress=progress))
    mixture.add(adapter.name, found, adapter.source)


def _load_lora(
    settings: LoadSettings,
    ordering: OrderingFile | None,
    decoder: Decoder,
    base: BaseSource,
    progress: Progress,
) -> LoadedAdapters:
    near = Path(settings.ordering).parent if settings.ordering else None
    wanted = {item.name: item.adapter_model_id for item in (ordering.preload_adapters or ())} if ordering else {}
    for given in settings.adapters:
        if given.name in wanted:
            raise AdapterError(
                "Two adapters have this name.", field=given.name, remedy="Give one of them another name."
            )
        wanted[given.name] = given.source
    found = {}
    for number, (name, source) in enumerate(wanted.items()):
        progress(f"Reading adapter {name}", number / len(wanted))
        found[name] = read_adapter(resolve_source(source, near=near, token=settings.token, progress=progress))
    warnings = _check(settings, ordering, base, found, None)
    mixture = _stack(decoder, found, wanted, progress)
    paths = mixture.adapted_paths()
    mixture.set_layers(number_layers(paths))
    if ordering is not None:
        active = dict.fromkeys(ordering.order or (), 1.0)
    else:  # one adapter was loaded to be used; of several the user chooses
        active = dict.fromkeys(found, 1.0) if len(found) == 1 else {}
    return LoadedAdapters(mixture, None, active, paths, warnings)


def _load_xlora(
    settings: LoadSettings,
    ordering: OrderingFile | None,
    decoder: Decoder,
    base: BaseSource,
    progress: Progress,
) -> LoadedAdapters:
    if settings.xlora is None:
        raise AdapterError("No X-LoRA checkpoint was chosen.", field="xlora", remedy="Choose its folder or hub id.")
    folder = resolve_source(settings.xlora, token=settings.token, progress=progress)
    checkpoint = read_xlora(folder)
    names = _xlora_names(settings, ordering, checkpoint)
    found = {}
    for number, name in enumerate(names):
        progress(f"Reading adapter {name}", number / len(names))
        found[name] = _xlora_adapter(checkpoint, name, names, settings, progress)
    warnings = _check(settings, ordering, base, found, checkpoint)
    sources = {name: str(adapter.weights_file.parent) for name, adapter in found.items()}
    mixture = _stack(decoder, found, sources, progress, checkpoint.config.global_scaling_weight)
    adapted = mixture.adapted_paths()
    layers = dict(ordering.layers) if ordering is not None and ordering.layers else number_layers(adapted)
    mixture.set_layers(layers)
    classifier = Classifier(
        checkpoint,
        hidden_size=decoder.config.hidden_size,
        layers=len(layers),
        adapters=len(names),
        device=decoder.device,
        dtype=decoder.dtype,
    )
    paths = tuple(sorted(layers, key=lambda path: layers[path]))
    return LoadedAdapters(mixture, classifier, dict.fromkeys(names, 1.0), paths, warnings)


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
    checkpoint: XLoraCheckpoint, name: str, names: tuple[str, ...], settings: LoadSettings, progress: Progress
) -> PeftAdapter:
    """An adapter by the checkpoint's map, by its files, or by hub id.

    The map's paths are those of the machine it was trained on, so what lies in the checkpoint's folder comes first.
    """
    listed = (checkpoint.adapters or {}).get(name)
    if listed is not None:
        for candidate in (checkpoint.folder / listed, Path(listed).expanduser()):
            if (candidate / CONFIG_NAME).is_file():
                return read_adapter(candidate)
    try:
        return find_adapter(checkpoint.folder, name, names)
    except AdapterError:
        if listed is None or Path(listed).is_absolute() or listed.startswith("."):
            raise
    return read_adapter(resolve_source(listed, token=settings.token, progress=progress))


def _check(
    settings: LoadSettings,
    ordering: OrderingFile | None,
    base: BaseSource,
    found: Mapping[str, PeftAdapter],
    checkpoint: XLoraCheckpoint | None,
) -> tuple[str, ...]:
    """Check the ordering file against what was found; errors are raised, warnings returned."""
    if ordering is None:
        return ()
    facts = None
    if checkpoint is not None:
        facts = ClassifierFacts(
            checkpoint.config.layerwise_scalings,
            checkpoint.outputs,
            tuple(checkpoint.adapters) if checkpoint.adapters and checkpoint.form == "peft" else None,
        )
    findings = check(
        ordering,
        CheckContext(
            file=settings.ordering,
            base_model_id=settings.base,
            config=base.hf_config,
            quantized=base.quantized,
            bits=base.bits,
            adapter_modules={name: frozenset(adapter.modules) for name, adapter in found.items()},
            xlora=facts,
            mode="xlora" if checkpoint is not None else "lora",
        ),
    )
    raise_errors(findings, settings.ordering)
    return tuple(finding.message for finding in findings if finding.severity == "warning")


def _stack(
    decoder: Decoder,
    found: Mapping[str, PeftAdapter],
    sources: Mapping[str, str],
    progress: Progress,
    global_scaling_weight: float = 1.0,
) -> Mixture:
    mixture = Mixture(decoder.projections, decoder.device, decoder.dtype, global_scaling_weight)
    for number, (name, adapter) in enumerate(found.items()):
        progress(f"Loading adapter {name}", number / len(found))
        mixture.add(name, adapter, sources[name])
    return mixture
