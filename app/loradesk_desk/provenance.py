"""What made an answer: enough to know how it came about, and to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from loradesk_engine.files import finite_number


@dataclass(frozen=True)
class AdapterUse:
    """An adapter that was loaded when the answer was made.

    Attributes:
        name, source: as loaded; the source is a folder or hub id.
        content_hash: SHA-256 of its files; empty where it is not known.
        rank: its largest rank.
    """

    name: str
    source: str = ""
    content_hash: str = ""
    rank: int = 0


@dataclass(frozen=True)
class WeightStep:
    """The weights that hold from one of the answer's tokens on.

    Attributes:
        token: index of the first completion token that they shaped.
        weights: adapter -> weight; an adapter that is not named has the weight 0.
    """

    token: int
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Provenance:
    """The record of one answer.

    Attributes:
        version: of Loradesk.
        kernels: what computed: `torch`, `triton`, or the compiled library's form.
        base, revision: folder, file or hub id of the base model, and the hub's revision.
        content_hash: SHA-256 of the base's files; empty where it is not known.
        architecture: as the model's configuration names it.
        adapters: the loaded adapters in the order of the scalings.
        steps: their weights over the answer's tokens, first step at token 0.
        mode: `none`, `lora` or `xlora`.
        ordering: path of the ordering file.
        tgt_non_granular_index: completion tokens after which the X-LoRA scalings were frozen.
        sampling: field -> value, with the seed that was drawn.
        system_prompt: as sent.
        template_hash: SHA-256 of the chat template.
        device, dtype: where and in which number type it was computed.
    """

    version: str = ""
    kernels: str = ""
    base: str = ""
    revision: str | None = None
    content_hash: str = ""
    architecture: str = ""
    adapters: tuple[AdapterUse, ...] = ()
    steps: tuple[WeightStep, ...] = ()
    mode: str = "none"
    ordering: str | None = None
    tgt_non_granular_index: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system_prompt: str = ""
    template_hash: str = ""
    device: str = ""
    dtype: str = ""

    def with_step(self, token: int, weights: Mapping[str, float]) -> Provenance:
        """The record with new weights from a token on; a step that changes nothing is not added."""
        weights = dict(weights)
        kept = tuple(step for step in self.steps if step.token < token)
        if kept and dict(kept[-1].weights) == weights:
            return replace(self, steps=kept)
        return replace(self, steps=(*kept, WeightStep(token, weights)))

    def weights_at(self, token: int) -> dict[str, float]:
        """The weights that shaped a completion token."""
        held: Mapping[str, float] = {}
        for step in self.steps:
            if step.token <= token:
                held = step.weights
        return dict(held)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Provenance:
        """The record of such JSON; fields of a wrong type keep their defaults, and unknown ones are left out."""
        plain = {"version", "kernels", "base", "content_hash", "architecture", "mode"}
        plain |= {"system_prompt", "template_hash", "device", "dtype"}
        values: dict[str, Any] = {}
        for entry in fields(cls):
            value = data.get(entry.name)
            if entry.name in plain | {"revision", "ordering"} and isinstance(value, str):
                values[entry.name] = value
        if isinstance(data.get("tgt_non_granular_index"), int):
            values["tgt_non_granular_index"] = data["tgt_non_granular_index"]
        if isinstance(data.get("sampling"), dict):
            values["sampling"] = dict(data["sampling"])
        values["adapters"] = tuple(filter(None, map(_adapter_use, _entries(data, "adapters"))))
        values["steps"] = tuple(filter(None, map(_weight_step, _entries(data, "steps"))))
        return cls(**values)


def _entries(data: Mapping[str, Any], name: str) -> list[Any]:
    value = data.get(name)
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _adapter_use(entry: dict[str, Any]) -> AdapterUse | None:
    name = entry.get("name")
    if not isinstance(name, str):
        return None
    texts = {key: entry[key] for key in ("source", "content_hash") if isinstance(entry.get(key), str)}
    rank = entry.get("rank")
    return AdapterUse(name, **texts, rank=rank if isinstance(rank, int) else 0)


def _weight_step(entry: dict[str, Any]) -> WeightStep | None:
    token, weights = entry.get("token"), entry.get("weights")
    if not isinstance(token, int) or token < 0 or not isinstance(weights, dict):
        return None
    numbers = {str(name): finite_number(weight) for name, weight in weights.items()}
    return WeightStep(token, {name: weight for name, weight in numbers.items() if weight is not None})
