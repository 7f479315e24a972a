"""An ordering file beside what it is checked against, with what several rules derive from both."""

from __future__ import annotations

from functools import cached_property

from loradesk_engine.errors import ConfigError
from loradesk_engine.ordering.finding import CheckContext, Fix, Severity
from loradesk_engine.ordering.modules import adaptable_modules, number_layers
from loradesk_engine.ordering.schema import OrderingFile

_WRAPPERS = ("base_model.model.", "module.")
_TAILS = (".weight", ".lora_A", ".lora_B", ".base_layer", ".")


class Subject:
    """Derived facts, each worked out once.

    Attributes:
        ordering, context: as given.
        linears: paths of the modules that adapters may sit on, in order: the embedding and the linears; None without a
            config that can be read.
        config_problem: why the config cannot be read.
    """

    def __init__(self, ordering: OrderingFile, context: CheckContext) -> None:
        self.ordering = ordering
        self.context = context
        self.linears: tuple[str, ...] | None = None
        self.config_problem: str | None = None
        if context.config is not None:
            try:
                self.linears = adaptable_modules(context.config)
            except ConfigError as problem:
                self.config_problem = f"{problem.field}: {problem.problem}" if problem.field else problem.problem

    @property
    def index_severity(self) -> Severity:
        """X-LoRA reads the scalings by these indices; LoRA only carries them."""
        return "warning" if self.context.mode == "lora" else "error"

    @cached_property
    def known_names(self) -> frozenset[str] | None:
        """Names that `order` may use; None when not known. LoRA also takes its own preload adapters."""
        if self.context.adapter_modules is None:
            return None
        names = frozenset(self.context.adapter_modules)
        if not self.context.is_xlora:
            names |= {adapter.name for adapter in self.ordering.preload_adapters or ()}
        return names

    @cached_property
    def adapter_modules(self) -> dict[str, frozenset[str]]:
        """Name -> modules of the adapters that are known, those that LoRA preloads included."""
        modules = dict(self.context.adapter_modules or {})
        if not self.context.is_xlora:
            looked = (self.context.preloads or {}).items()
            modules |= {entry.name: facts.modules for entry, facts in looked if facts.modules is not None}
        return modules

    @cached_property
    def adapted(self) -> frozenset[str] | None:
        """Modules that the adapters in use adapt; None when not all of them are known."""
        modules = self.adapter_modules
        unseen = [facts for facts in (self.context.preloads or {}).values() if facts.modules is None]
        if not modules or (unseen and not self.context.is_xlora):
            return None
        used = [name for name in self.ordering.order or () if name in modules] if self.context.is_xlora else []
        return frozenset().union(*(modules[name] for name in used or modules))

    @cached_property
    def renumbering(self) -> Fix | None:
        """A change that gives `layers` the right modules and indices; None when they cannot be known or are right."""
        layers = self.ordering.layers
        if self.linears is not None:
            wanted = self.adapted or {plain_path(path) for path in layers or ()}
            new = number_layers(path for path in self.linears if path in wanted)
            title = "Generate layers from the model's configuration"
        elif layers is not None:
            new = number_layers(sorted(layers, key=lambda path: layers[path]))
            title = "Number layers without gaps or repeats"
        else:
            return None
        return Fix(title, {"layers": new}) if new and new != layers else None


def plain_path(path: str) -> str:
    """A module path without the wrappers and tails that tools leave on it (`base_model.model.`, `.lora_A`)."""
    for wrapper in _WRAPPERS:
        path = path.removeprefix(wrapper)
    for tail in _TAILS:
        path = path.removesuffix(tail)
    return path
