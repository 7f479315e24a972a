"""The adapters of an engine, and the weights that requests use unless they bring their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loradesk_engine.activation import active_weights
from loradesk_engine.adapters.load import LoadedAdapters, add_adapter
from loradesk_engine.adapters.mixture import LoraAdapter, Mixture
from loradesk_engine.commands import AdapterSource
from loradesk_engine.errors import AdapterError
from loradesk_engine.events import AdapterInfo
from loradesk_engine.formats.hub import silent
from loradesk_engine.generation.sequence import AdapterState
from loradesk_engine.model.linear import Linear


class ActiveAdapters:
    """Which adapters are loaded, and which of them are active.

    Attributes:
        mixture: all adapters; None if the model was loaded without any.
        layer_paths: paths of the adapted linears; index = layer axis of the scalings.
        weights: name -> weight of the active adapters, none of them 0.
    """

    def __init__(self, loaded: LoadedAdapters | None) -> None:
        self.mixture: Mixture | None = loaded.mixture if loaded else None
        self.layer_paths: tuple[str, ...] = loaded.layer_paths if loaded else ()
        self.weights: dict[str, float] = dict(loaded.active) if loaded else {}
        self._xlora = loaded is not None and loaded.classifier is not None

    def checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Valid weights without zeros, in the adapters' order.

        Raises:
            AdapterError: a name is not loaded, or a weight is out of range.
        """
        return active_weights(weights, [adapter.name for adapter in self.mixture.adapters] if self.mixture else ())

    def state(self, weights: Mapping[str, float]) -> AdapterState:
        """The adapter state of valid weights. Equal keys mean equal keys and values in the KV cache."""
        if self.mixture is None:
            return AdapterState({}, ())
        uids = {adapter.name: adapter.uid for adapter in self.mixture.adapters}
        return AdapterState(dict(weights), tuple(sorted((uids[name], weight) for name, weight in weights.items())))

    def refuse_addition(self, name: str) -> None:
        """Check that an adapter can be added to this model.

        Raises:
            AdapterError: it was loaded as an X-LoRA, or without adapters.
        """
        if self._xlora:
            raise AdapterError(
                "The adapters of an X-LoRA model belong to its classifier.",
                field=name,
                remedy="Load the model in LoRA mode to add adapters.",
            )
        if self.mixture is None:
            raise AdapterError("The model was loaded without adapters.", field=name, remedy="Load it in LoRA mode.")

    def refuse_removal(self, name: str) -> None:
        """Check that an adapter can be removed.

        Raises:
            AdapterError: there is no such adapter, or it is part of an X-LoRA.
        """
        if self.mixture is None or self._xlora:
            raise AdapterError("Only adapters of LoRA mode can be removed.", field=name)
        self.mixture.place(name)

    def add(self, adapter: AdapterSource, token: str | None) -> None:
        """Load one more LoRA adapter, where `refuse_addition` allows it; it starts inactive.

        token: for the hub.

        Raises:
            AdapterError, FileFormatError, HubError: it cannot be used. Nothing is changed.
        """
        assert self.mixture is not None
        add_adapter(self.mixture, adapter, silent, token)
        self._update_layers(self.mixture)

    def remove(self, name: str) -> None:
        """Unload a LoRA adapter, where `refuse_removal` allows it."""
        assert self.mixture is not None
        self.mixture.remove(name)
        self.weights.pop(name, None)
        self._update_layers(self.mixture)

    def _update_layers(self, mixture: Mixture) -> None:
        self.layer_paths = mixture.adapted_paths()
        mixture.set_layers({path: place for place, path in enumerate(self.layer_paths)})

    def infos(self, linears: Sequence[Linear]) -> tuple[AdapterInfo, ...]:
        """The loaded adapters, in the order of the scalings' last axis. linears: those of the decoder."""
        return tuple(_info(adapter, linears) for adapter in self.mixture.adapters) if self.mixture else ()


def _info(adapter: LoraAdapter, linears: Sequence[Linear]) -> AdapterInfo:
    targets = dict.fromkeys(linears[index].path.rpartition(".")[2] for index in sorted(adapter.modules))
    left_out = f", {adapter.left_out} more in its file are left out" if adapter.left_out else ""
    missing = f", {len(adapter.missing)} that it should adapt are not in its file" if adapter.missing else ""
    return AdapterInfo(
        name=adapter.name,
        source=adapter.source,
        rank=max(rank for rank, _ in adapter.modules.values()),
        modules=len(adapter.modules),
        target_modules=tuple(targets),
        applied=f"applied to {len(adapter.modules)} of {len(linears)} modules{left_out}{missing}",
        nbytes=adapter.nbytes,
    )
