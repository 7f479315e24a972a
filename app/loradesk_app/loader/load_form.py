"""What the loader's fields hold, and the load settings they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from loradesk_engine.commands import AdapterMode, AdapterSource, LoadSettings, Precision, Quantize
from loradesk_engine.demo import demo_settings

Source = Literal["demo", "local", "hub"]


@dataclass(frozen=True)
class LoadForm:
    """The fields as the user sees them; `settings` turns them into a command's data.

    Attributes:
        source: the demo pack, something on this computer, or the hub.
        path: folder or GGUF file of a local base.
        hub_id, revision, token: of a base on the hub.
        mode: how adapters are used.
        adapters: LoRA adapters.
        repository: folder or hub id in which the ordering file's adapters are found by their names.
        xlora: folder or hub id of the X-LoRA checkpoint.
        relu: whether its classifier has a ReLU, where it does not say it; None assumes it by the file's age.
        ordering: path of the ordering file.
        device, dtype: `auto` or a name.
        quantize: what bitsandbytes is to make of the base while it loads; not for GGUF files.
        context: tokens, 0 for the model's own.
        non_granular: freeze scalings after so many tokens, 0 for never.
    """

    source: Source = "demo"
    path: str = ""
    hub_id: str = ""
    revision: str = ""
    token: str = ""
    mode: AdapterMode = "xlora"
    adapters: tuple[AdapterSource, ...] = ()
    repository: str = ""
    xlora: str = ""
    relu: bool | None = None
    ordering: str = ""
    device: str = "auto"
    dtype: Precision = "auto"
    quantize: Quantize = "none"
    context: int = 0
    non_granular: int = 0

    def complaint(self) -> tuple[str, str] | None:
        """(field, sentence) for the first thing that is missing, or None."""
        if self.source == "demo":
            return None
        named = self.mode != "none" and bool(self.ordering.strip())  # the ordering file names a base, too
        if self.source == "local" and not self.path.strip() and not named:
            return "path", "Choose the folder or GGUF file of the base model."
        if self.source == "hub" and not self.hub_id.strip() and not named:
            return "hub_id", "Type the hub id of the base model, such as organisation/model."
        if self.mode == "xlora" and not self.xlora.strip():
            return "xlora", "Choose the X-LoRA checkpoint."
        return self._adapters_complaint() if self.mode == "lora" else None

    def _adapters_complaint(self) -> tuple[str, str] | None:
        names = [adapter.name for adapter in self.adapters]
        if not self.adapters and not self.ordering.strip():
            return "adapters", "Add an adapter, or choose an ordering file that names some."
        if any(not adapter.name.strip() or not adapter.source.strip() for adapter in self.adapters):
            return "adapters", "Each adapter needs a name and a folder or hub id."
        if len(set(names)) < len(names):
            return "adapters", "Two adapters have the same name."
        if self.repository.strip() and not self.ordering.strip():
            return "repository", "A folder of adapters needs an ordering file that names those to load."
        return None

    def quantizable(self) -> bool:
        """Whether the base can be quantized while loading, by its looks; the disk is not asked."""
        base = {"local": self.path, "hub": self.hub_id}.get(self.source, "")
        return not base.strip().lower().endswith(".gguf")

    def settings(self) -> LoadSettings:
        """The load settings; only fields that belong to the chosen source and mode count."""
        frozen = self.non_granular or None
        model = demo_settings(self.mode, frozen) if self.source == "demo" else self._own_model(frozen)
        return replace(
            model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize if self.quantizable() else "none",
            context=self.context or None,
        )

    def _own_model(self, frozen: int | None) -> LoadSettings:
        """A model of the user's, with its adapters."""
        return LoadSettings(
            base=self.path.strip() if self.source == "local" else self.hub_id.strip(),
            revision=(self.revision.strip() or None) if self.source == "hub" else None,
            token=(self.token.strip() or None) if self.source == "hub" else None,
            mode=self.mode,
            adapters=self.adapters if self.mode == "lora" else (),
            repository=(self.repository.strip() or None) if self.mode == "lora" else None,
            xlora=self.xlora.strip() if self.mode == "xlora" else None,
            xlora_relu=self.relu if self.mode == "xlora" else None,
            ordering=(self.ordering.strip() or None) if self.mode != "none" else None,
            tgt_non_granular_index=frozen if self.mode == "xlora" else None,
        )

    def added_to(self, form: LoadForm) -> LoadForm:
        """The other form with the adapters, or the checkpoint, of this one; what else it says stays."""
        if form.source == "demo":  # it has adapters of its own and takes no others
            form = replace(form, source=self.source, path=self.path, hub_id=self.hub_id)
        if self.mode == "xlora":
            return replace(form, mode="xlora", xlora=self.xlora, ordering=self.ordering or form.ordering)
        adapters = (*form.adapters, *(adapter for adapter in self.adapters if adapter not in form.adapters))
        return replace(form, mode=self.mode, adapters=adapters)

    @classmethod
    def of(cls, settings: LoadSettings) -> LoadForm:
        """The fields that would make these settings."""
        form = cls(
            source="demo",
            mode=settings.mode,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
            context=settings.context or 0,
            non_granular=settings.tgt_non_granular_index or 0,
        )
        if settings.base == demo_settings("none").base:
            return form
        local = not settings.base or is_local(settings.base)
        return replace(
            form,
            source="local" if local else "hub",
            path=settings.base if local else "",
            hub_id="" if local else settings.base,
            revision=settings.revision or "",
            token=settings.token or "",
            adapters=settings.adapters,
            repository=settings.repository or "",
            relu=settings.xlora_relu,
            xlora=settings.xlora or "",
            ordering=settings.ordering or "",
        )


def is_local(base: str) -> bool:
    """Whether a base is a path by its looks; the disk is not asked."""
    if base.startswith(("/", "~", ".", "\\")) or base[1:3] in (":\\", ":/"):
        return True
    return base.lower().endswith(".gguf") and base.count("/") < 2  # with two it is a file of a hub repository
