"""Everything is one mixture: y = W x + g * sum_i s[t, l, i] * scale_i * B_i (A_i x).

The A matrices of all adapters on a linear are stacked into one, and so are the B matrices: two small products, with the
hidden vector multiplied by `s` per rank block, whatever the number of adapters. Activating an adapter changes `s`,
never a weight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.errors import AdapterError
from loradesk_engine.formats.peft import PeftAdapter
from loradesk_engine.model.linear import DenseLinear, Linear

SUBSETS_KEPT = 8  # sets of active adapters whose weights are kept cut out


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter that is part of the mixture.

    Attributes:
        uid: unique for the life of the model; a name may be used again by another adapter.
        modules: linear index -> (rank, scale).
    """

    uid: int
    name: str
    source: str
    modules: Mapping[int, tuple[int, float]]
    nbytes: int


@dataclass(frozen=True)
class _Stack:
    """The adapters of one linear. a: [ranks, in], b: [out, ranks]; blocks: (adapter uid, rank, scale) in order."""

    a: Tensor
    b: Tensor
    blocks: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class _Subset:
    """The stacks cut down to some adapters, ready for forward passes.

    Attributes:
        stacks: for each linear, or None where none of the adapters is.
        groups: for each linear the number of its layout; most models have one layout for all linears.
        layouts: for each layout, which adapter (place among the subset's) owns each rank, int64 [ranks], and the
            ranks' scales, [ranks].
        layers: for each linear its place on the layer axis of the scalings.
    """

    stacks: list[_Stack | None]
    groups: list[int]
    layouts: list[tuple[Tensor, Tensor]]
    layers: list[int]
    columns: Tensor  # int64 [adapters of the subset], their places among all adapters


class MixtureDelta:
    """What the mixture adds to the linears for the rows of one batch; see `Mixture.delta`."""

    def __init__(self, stacks: list[_Stack | None], factors: list[Tensor | None], rows: Tensor | None = None) -> None:
        self._stacks = stacks
        self._factors = factors
        self._rows = rows

    def add(self, index: int, x: Tensor, y: Tensor) -> Tensor:
        stack, factor = self._stacks[index], self._factors[index]
        if stack is None or factor is None:
            return y
        if self._rows is not None and factor.shape[0] > 1:
            factor = factor[self._rows]
        inner = F.linear(x, stack.a).mul_(factor)  # [rows, ranks]
        return y.addmm_(inner, stack.b.t())

    def take(self, rows: Tensor) -> MixtureDelta:
        return MixtureDelta(self._stacks, self._factors, rows)


class Mixture:
    """The LoRA adapters of a model.

    Args:
        linears: the model's linears, `linears[i].index == i`.
        device, dtype: the adapters' weights are held like the model's activations; they are never quantized.
    """

    def __init__(self, linears: Sequence[Linear], device: torch.device, dtype: torch.dtype) -> None:
        self._linears = linears
        self._by_path = {linear.path: linear for linear in linears}
        self._device = device
        self._dtype = dtype
        self._stacks: list[_Stack | None] = [None] * len(linears)
        self._layers: list[int] = [0] * len(linears)
        self._next_uid = 0
        self._subsets: OrderedDict[tuple[int, ...], _Subset] = OrderedDict()
        self.adapters: list[LoraAdapter] = []
        self.global_scaling_weight = 1.0

    def place(self, name: str) -> int:
        """Place of an adapter on the last axis of the scalings.

        Raises:
            AdapterError: no adapter of this name is loaded; names those that are.
        """
        for place, adapter in enumerate(self.adapters):
            if adapter.name == name:
                return place
        loaded = ", ".join(adapter.name for adapter in self.adapters) or "none"
        raise AdapterError(f"No adapter named {name!r} is loaded.", field=name, remedy=f"Loaded: {loaded}.")

    def adapted_paths(self) -> tuple[str, ...]:
        """Paths of the linears that any adapter adapts, in registration order."""
        return tuple(
            linear.path for linear, stack in zip(self._linears, self._stacks, strict=True) if stack is not None
        )

    def set_layers(self, layers: Mapping[str, int]) -> None:
        """Say which linear has which place on the layer axis of the scalings."""
        for path, place in layers.items():
            self._layers[self._by_path[path].index] = place
        self._subsets.clear()

    def add(self, name: str, adapter: PeftAdapter, source: str) -> LoraAdapter:
        """Put an adapter on top of the stacks; it takes the last place on the adapter axis.

        Raises:
            AdapterError: the name is taken, or the adapter does not fit this model. Nothing is changed then.
        """
        if any(other.name == name for other in self.adapters):
            raise AdapterError("An adapter of this name is loaded already.", file=source, field=name)
        fitting = [module for path, module in adapter.modules.items() if path in self._by_path]
        strangers = [path for path in adapter.modules if path not in self._by_path]
        if strangers:
            raise AdapterError(
                f"The adapter changes {len(strangers)} modules that this base model does not have.",
                file=adapter.weights_file,
                field=strangers[0],
                remedy=_other_base(adapter),
            )
        for module in fitting:
            linear = self._by_path[module.path]
            if (module.in_features, module.out_features) != (linear.in_features, linear.out_features):
                raise AdapterError(
                    f"The adapter is for a linear of {module.in_features} -> {module.out_features}, the model's has "
                    f"{linear.in_features} -> {linear.out_features}.",
                    file=adapter.weights_file,
                    field=module.path,
                    remedy=_other_base(adapter),
                )
        for path in adapter.base_copies:
            own = self._by_path.get(path)
            if not isinstance(own, DenseLinear) or not _same(adapter.base_copy(path), own.weight):
                raise AdapterError(
                    "The adapter brings a matrix of its own that differs from the base model's.",
                    file=adapter.weights_file,
                    field=path,
                    remedy=_other_base(adapter),
                )
        uid = self._next_uid
        modules: dict[int, tuple[int, float]] = {}
        nbytes = 0
        stacks = list(self._stacks)
        for module in fitting:
            index = self._by_path[module.path].index
            a, b = (tensor.to(self._device, self._dtype) for tensor in adapter.weights(module))
            nbytes += a.nbytes + b.nbytes
            old = stacks[index]
            block = (uid, module.rank, module.scale)
            stacks[index] = (
                _Stack(a.contiguous().clone(), b.contiguous().clone(), (block,))
                if old is None
                else _Stack(torch.cat([old.a, a]), torch.cat([old.b, b], dim=1), (*old.blocks, block))
            )
            modules[index] = (module.rank, module.scale)
        self._next_uid += 1
        self._stacks = stacks
        self._subsets.clear()
        loaded = LoraAdapter(uid, name, source, modules, nbytes)
        self.adapters.append(loaded)
        return loaded

    def remove(self, name: str) -> LoraAdapter:
        """Take an adapter out of the stacks; those after it move down one place.

        Raises:
            AdapterError: there is none of this name.
        """
        adapter = self.adapters[self.place(name)]
        for index in adapter.modules:
            stack = self._stacks[index]
            assert stack is not None
            self._stacks[index] = self._cut(stack, {block[0] for block in stack.blocks} - {adapter.uid})
        self.adapters.remove(adapter)
        self._subsets.clear()
        return adapter

    def delta(self, scalings: Tensor, active: Sequence[int]) -> MixtureDelta | None:
        """The mixture for rows with these scalings.

        Args:
            scalings: [rows, layers, adapters], float32; 1 in place of rows or layers where all are alike.
            active: places of the adapters that are not zero in every row; only these are computed.

        Returns:
            None when no adapter is active: the base model, untouched.
        """
        if not active:
            return None
        subset = self._subset(tuple(active))
        chosen = scalings if len(active) == len(self.adapters) else scalings.index_select(2, subset.columns)
        by_layout = []
        for owners, scales in subset.layouts:
            factors = chosen.index_select(2, owners) * (scales * self.global_scaling_weight)
            by_layout.append(factors.to(self._dtype).unbind(1))  # a [rows, ranks] for every layer
        last = scalings.shape[1] - 1  # 0 when all layers are alike
        factors_of: list[Tensor | None] = [
            None if stack is None else by_layout[group][min(layer, last)]
            for stack, group, layer in zip(subset.stacks, subset.groups, subset.layers, strict=True)
        ]
        return MixtureDelta(subset.stacks, factors_of)

    def _subset(self, active: tuple[int, ...]) -> _Subset:
        if active in self._subsets:
            self._subsets.move_to_end(active)
            return self._subsets[active]
        uids = [self.adapters[place].uid for place in active]
        stacks = [None if stack is None else self._cut(stack, set(uids)) for stack in self._stacks]
        numbers: dict[tuple[tuple[int, int, float], ...], int] = {}
        groups = [0 if stack is None else numbers.setdefault(stack.blocks, len(numbers)) for stack in stacks]
        layouts = []
        for blocks in numbers:
            owners = [uids.index(uid) for uid, rank, _ in blocks for _ in range(rank)]
            scales = [scale for _, rank, scale in blocks for _ in range(rank)]
            layouts.append(
                (
                    torch.tensor(owners, dtype=torch.int64, device=self._device),
                    torch.tensor(scales, dtype=torch.float32, device=self._device),
                )
            )
        columns = torch.tensor(active, dtype=torch.int64, device=self._device)
        subset = _Subset(stacks, groups, layouts, self._layers, columns)
        self._subsets[active] = subset
        while len(self._subsets) > SUBSETS_KEPT:
            self._subsets.popitem(last=False)
        return subset

    def _cut(self, stack: _Stack, uids: set[int]) -> _Stack | None:
        """The stack with only these adapters; the stack itself when that is all of it, views where they lie side by
        side.
        """
        kept = [block for block in stack.blocks if block[0] in uids]
        if len(kept) == len(stack.blocks):
            return stack
        if not kept:
            return None
        ranges, start = [], 0
        for uid, rank, _ in stack.blocks:
            if uid in uids:
                ranges.append((start, start + rank))
            start += rank
        first, last = ranges[0][0], ranges[-1][1]
        if sum(end - begin for begin, end in ranges) == last - first:
            return _Stack(stack.a[first:last], stack.b[:, first:last], tuple(kept))
        a = torch.cat([stack.a[begin:end] for begin, end in ranges])
        b = torch.cat([stack.b[:, begin:end] for begin, end in ranges], dim=1)
        return _Stack(a, b, tuple(kept))


def _same(copy: Tensor, weight: Tensor) -> bool:
    """Whether they are equal up to the rounding of the type the model is held in."""
    return copy.shape == weight.shape and torch.equal(copy.to(weight.device, weight.dtype), weight)


def _other_base(adapter: PeftAdapter) -> str:
    trained = f"It was trained on {adapter.base_model}. " if adapter.base_model else ""
    return f"{trained}Load it on the base model it was trained on."
