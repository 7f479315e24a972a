"""Everything is one mixture: y = W x + g * sum_i s[t, l, i] * scale_i * B_i (A_i x).

The A matrices of all adapters on a linear are stacked into one, and so are the B matrices: two small products, with the
hidden vector multiplied by `s` per rank block, whatever the number of adapters. Activating an adapter changes `s`,
never a weight. What DoRA and biases add is in `shift.py`; each adapter's part is relative to the base.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.adapters.base_copy import is_copy
from loradesk_engine.adapters.shift import Shift, gain_of, shift_of
from loradesk_engine.errors import AdapterError
from loradesk_engine.formats.peft import PeftAdapter
from loradesk_engine.model import kernels
from loradesk_engine.model.base import BaseSource
from loradesk_engine.model.kernel_protocol import AdapterPart, PackedAdapters
from loradesk_engine.model.linear import Projection, joined

SUBSETS_KEPT = 8  # sets of active adapters whose weights are kept cut out
SUBSETS_BYTES = 3  # and what they may take for the kernels, by all adapters' own memory


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter that is part of the mixture.

    Attributes:
        uid: unique for the life of the model; a name may be used again by another adapter.
        modules: linear index -> (rank, scale).
        left_out: modules that its file has and its configuration does not adapt.
        missing: the model's modules that its configuration adapts and its file does not have.
    """

    uid: int
    name: str
    source: str
    modules: Mapping[int, tuple[int, float]]
    nbytes: int
    left_out: int = 0
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Stack:
    """The adapters of one linear. a: [ranks, in], b: [out, ranks]; blocks: (adapter uid, rank, scale) in order."""

    a: Tensor
    b: Tensor
    blocks: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Part:
    """A linear's share of a group: its columns of the output, its ranks among the group's, its b [out, ranks]."""

    columns: slice
    ranks: slice
    b: Tensor


@dataclass(frozen=True)
class _GroupShift:
    """The shifts of a group. stretch, offset: [shifts, columns], zero outside of the columns of a shift's linear."""

    stretch: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Group:
    """The adapters of one projection, which has one product with all of its linears' A.

    Attributes:
        a: [ranks, in], those of all parts.
        parts: the linears that have any of them.
        width: how many factors it takes: one for each rank, and behind them one for each shift.
        shift: what its adapters change beside `B A x`.
        packed: a and parts for the kernels; None without kernels, or with shifts, which the kernels do not support.
    """

    a: Tensor
    parts: tuple[Part, ...]
    width: int
    shift: _GroupShift | None
    packed: PackedAdapters | None


@dataclass(frozen=True, eq=False)
class _Gather:
    """How the scalings of a row become the factors of all ranks of the model in one step.

    Attributes:
        index: int64 [factors], places in a row's scalings.
        scales: float32 [factors], the adapters' own scales.
        starts: for each projection, where its factors begin.
    """

    index: Tensor
    scales: Tensor
    starts: list[int]


@dataclass(frozen=True)
class _Subset:
    """The mixture cut down to some adapters, ready for forward passes.

    Attributes:
        groups: for each projection, or None where none of the adapters is.
        layered: for scalings that differ by layer.
        uniform: for scalings that are alike for all layers; projections with the same adapters share their factors.
    """

    groups: list[Group | None]
    layered: _Gather
    uniform: _Gather

    @property
    def nbytes(self) -> int:
        """Memory that it takes for the kernels."""
        return sum(group.packed.nbytes for group in self.groups if group is not None and group.packed is not None)


class MixtureDelta:
    """What the mixture adds to the projections for the rows of one batch; see `Mixture.delta`.

    factors: [rows or 1, factors], in the model's type; those of projection i begin at gather.starts[i].
    """

    def __init__(
        self, groups: list[Group | None], factors: Tensor, gather: _Gather, rows: Tensor | None = None
    ) -> None:
        self._groups = groups
        self.factors = factors
        self._gather = gather
        self._rows = rows

    @property
    def form(self) -> object | None:
        return self._gather if self._rows is None else None

    def with_factors(self, factors: Tensor) -> MixtureDelta:
        return MixtureDelta(self._groups, factors, self._gather, self._rows)

    def begin(self, number: int, x: Tensor) -> Any:
        """A's product where the kernels do it. x: [rows, in]"""
        group, step = self._groups[number], kernels.in_use()
        if step is None or group is None or group.packed is None:
            return None
        return step.begin_adapters(group.packed, x, self._factors_of(number, group))

    def add(self, number: int, x: Tensor, y: Tensor, begun: Any) -> Tensor:
        group, step = self._groups[number], kernels.in_use()
        if group is None:
            return y
        if step is not None and begun is not None:
            step.add_adapters(group.packed, begun, y)
            return y
        factors = self._factors_of(number, group)
        if group.shift is not None:
            ranks = group.a.shape[0]
            factors, shares = factors[:, :ranks], factors[:, ranks:]
            y.addcmul_(y, shares @ group.shift.stretch).add_(shares @ group.shift.offset)
        inner = F.linear(x, group.a).mul_(factors)  # [rows, ranks]
        for part in group.parts:
            y[:, part.columns].addmm_(inner[:, part.ranks], part.b.t())
        return y

    def _factors_of(self, number: int, group: Group) -> Tensor:
        """[rows or 1, width]"""
        start = self._gather.starts[number]
        factors = self.factors[:, start : start + group.width]
        return factors[self._rows] if self._rows is not None and factors.shape[0] > 1 else factors

    def take(self, rows: Tensor) -> MixtureDelta:
        return MixtureDelta(self._groups, self.factors, self._gather, rows)


class Mixture:
    """The LoRA adapters of a model.

    Args:
        projections: the model's, `projections[i].number == i`.
        device, dtype: the adapters' weights are held like the model's activations; they are never quantized.
        global_scaling_weight: g, which every adapter is multiplied by.
        read_base: gives what the model was loaded from; adapters that bring copies of its weights are compared with
            that, and refused without it.
    """

    def __init__(
        self,
        projections: Sequence[Projection],
        device: torch.device,
        dtype: torch.dtype,
        global_scaling_weight: float = 1.0,
        read_base: Callable[[], BaseSource] | None = None,
    ) -> None:
        self._projections = projections
        self._read_base = read_base
        linears = sorted((linear for each in projections for linear in each.linears), key=lambda linear: linear.index)
        self._by_path = {linear.path: linear for linear in linears}
        self._device = device
        self._dtype = dtype
        self._global_scaling_weight = global_scaling_weight
        self._stacks: list[_Stack | None] = [None] * len(linears)
        self._shifts: list[tuple[Shift, ...]] = [()] * len(linears)
        self._layers: list[int] = [0] * len(linears)
        self._next_uid = 0
        self._subsets: OrderedDict[tuple[int, ...], _Subset] = OrderedDict()
        self.adapters: list[LoraAdapter] = []

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
        return tuple(path for path, linear in self._by_path.items() if self._stacks[linear.index] is not None)

    def set_layers(self, layers: Mapping[str, int]) -> None:
        """Say which linear has which place on the layer axis of the scalings, once all adapters are there.

        An embedding may have a place there, too, which nothing reads: adapters on embeddings are not supported.
        """
        for path, place in layers.items():
            if path in self._by_path:
                self._layers[self._by_path[path].index] = place
        self._lay_together()

    def add(self, name: str, adapter: PeftAdapter, source: str) -> LoraAdapter:
        """Put an adapter on top of the stacks; it takes the last place on the adapter axis.

        Raises:
            AdapterError: the name is taken, or the adapter does not fit this model. Nothing is changed then.
        """
        if any(other.name == name for other in self.adapters):
            raise AdapterError("An adapter of this name is loaded already.", file=source, field=name)
        fitting = [module for path, module in adapter.modules.items() if path in self._by_path]
        strangers = [path for path in (*adapter.modules, *adapter.biases) if path not in self._by_path]
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
        self._refuse_other_base(adapter)
        missing = adapter.missing(self._by_path)
        uid = self._next_uid
        modules: dict[int, tuple[int, float]] = {}
        nbytes = 0
        stacks, shifts = list(self._stacks), list(self._shifts)
        gains: dict[str, Tensor] = {}
        for module in fitting:
            linear = self._by_path[module.path]
            index = linear.index
            a, b = adapter.weights(module)
            if module.magnitude is not None:
                a, b = self._float(a), self._float(b)
                magnitude = adapter.tensor(module.magnitude)
                gain = gains[module.path] = gain_of(linear, a, b, module.scale, self._float(magnitude))
                _refuse_endless(gain, adapter, module.magnitude)
                b = gain[:, None] * b
            a, b = a.to(self._device, self._dtype), b.to(self._device, self._dtype)
            nbytes += a.nbytes + b.nbytes
            old = stacks[index]
            block = (uid, module.rank, module.scale)
            stacks[index] = (
                _Stack(a.contiguous().clone(), b.contiguous().clone(), (block,))
                if old is None
                else _Stack(torch.cat([old.a, a]), torch.cat([old.b, b], dim=1), (*old.blocks, block))
            )
            modules[index] = (module.rank, module.scale)
        for path in dict.fromkeys((*adapter.modules, *adapter.biases)):
            shift = self._shift(uid, adapter, path, gains.get(path))
            if shift is not None:
                index = self._by_path[path].index
                shifts[index] = (*shifts[index], shift)
                nbytes += shift.nbytes
        self._next_uid += 1
        self._stacks, self._shifts = stacks, shifts
        self._subsets.clear()
        loaded = LoraAdapter(uid, name, source, modules, nbytes, len(adapter.left_out), missing)
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
        self._shifts = [tuple(shift for shift in each if shift.uid != adapter.uid) for each in self._shifts]
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
        gather = subset.uniform if scalings.shape[1] == 1 else subset.layered
        factors = scalings.flatten(1).index_select(1, gather.index) * gather.scales
        return MixtureDelta(subset.groups, factors.to(self._dtype), gather)

    def _refuse_other_base(self, adapter: PeftAdapter) -> None:
        """Refuse an adapter whose copies of the base, or whose biases, do not fit this base."""
        base = self._read_base() if adapter.base_copies and self._read_base is not None else None
        for copied, name in adapter.base_copies.items():
            path, _, kind = copied.rpartition(".")
            linear = self._by_path.get(path)
            if linear is None or base is None or not is_copy(adapter.tensor(name), linear, kind, base):
                what = "matrix" if kind == "weight" else "bias"
                raise AdapterError(
                    f"The adapter brings a {what} of its own that differs from the base model's.",
                    file=adapter.weights_file,
                    field=path,
                    remedy=_other_base(adapter),
                )
        for path, name in adapter.biases.items():
            linear, size = self._by_path[path], adapter.tensor(name).shape[0]
            if linear.bias is None or linear.out_features != size:
                own_size = "none" if linear.bias is None else f"one of {linear.out_features}"
                raise AdapterError(
                    f"The adapter brings a trained bias of {size}, the model has {own_size}.",
                    file=adapter.weights_file,
                    field=name,
                    remedy=_other_base(adapter),
                )

    def _shift(self, uid: int, adapter: PeftAdapter, path: str, gain: Tensor | None) -> Shift | None:
        """The shift of an adapter on a linear, in the model's type; None for plain LoRA."""
        module, trained, added = adapter.modules.get(path), None, None
        if path in adapter.biases:
            trained = self._float(adapter.tensor(adapter.biases[path]))
        if module is not None and module.bias is not None:
            added = module.scale * self._float(adapter.tensor(module.bias))
        if gain is None and added is None and trained is None:
            return None
        return shift_of(uid, self._by_path[path], gain, added, trained).to(self._dtype)

    def _float(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, torch.float32)

    def _lay_together(self) -> None:
        """Lay the A of each projection's linears into one matrix, and the B behind one another; the stacks are views
        then.
        """
        self._subsets.clear()
        for projection in self._projections:
            found = [(linear.index, self._stacks[linear.index]) for linear in projection.linears]
            stacks = [(index, stack) for index, stack in found if stack is not None]
            if len(stacks) < 2:
                continue
            whole_a = torch.cat([stack.a for _, stack in stacks])
            whole_b = torch.cat([stack.b.reshape(-1) for _, stack in stacks])
            start, place = 0, 0
            for index, stack in stacks:
                end, end_place = start + stack.a.shape[0], place + stack.b.numel()
                b = whole_b[place:end_place].view(stack.b.shape)
                self._stacks[index] = _Stack(whole_a[start:end], b, stack.blocks)
                start, place = end, end_place

    def _subset(self, active: tuple[int, ...]) -> _Subset:
        if active in self._subsets:
            self._subsets.move_to_end(active)
            return self._subsets[active]
        places = {self.adapters[place].uid: place for place in active}
        groups: list[Group | None] = []
        layered, uniform = _GatherMaker(), _GatherMaker()
        shared: dict[tuple[tuple[int, int, float], ...], int] = {}  # blocks of a projection -> start in `uniform`
        for projection in self._projections:
            cut = [self._cut_of(linear.index, places) for linear in projection.linears]
            shifts = [
                [shift for shift in self._shifts[linear.index] if shift.uid in places] for linear in projection.linears
            ]
            groups.append(_group(projection, cut, shifts))
            layered.starts.append(len(layered.index))
            found = [
                (linear, block)
                for linear, stack in zip(projection.linears, cut, strict=True)
                for block in (stack.blocks if stack is not None else ())
            ]
            # behind the ranks: a shift takes one factor, and its adapter's scale is in it already
            found += [
                (linear, (shift.uid, 1, 1.0))
                for linear, each in zip(projection.linears, shifts, strict=True)
                for shift in each
            ]
            blocks = tuple(block for _, block in found)
            uniform.starts.append(shared.setdefault(blocks, len(uniform.index)))
            for linear, (uid, rank, scale) in found:
                place = self._layers[linear.index] * len(self.adapters) + places[uid]
                layered.add(place, rank, scale * self._global_scaling_weight)
            if uniform.starts[-1] == len(uniform.index):
                for uid, rank, scale in blocks:
                    uniform.add(places[uid], rank, scale * self._global_scaling_weight)
        subset = _Subset(groups, layered.on(self._device), uniform.on(self._device))
        self._subsets[active] = subset
        most = SUBSETS_BYTES * sum(adapter.nbytes for adapter in self.adapters)
        while len(self._subsets) > 1 and (
            len(self._subsets) > SUBSETS_KEPT or sum(each.nbytes for each in self._subsets.values()) > most
        ):
            self._subsets.popitem(last=False)
        return subset

    def _cut_of(self, index: int, places: Mapping[int, int]) -> _Stack | None:
        stack = self._stacks[index]
        return None if stack is None else self._cut(stack, set(places))

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


@dataclass
class _GatherMaker:
    """A gather while it is put together."""

    index: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    def add(self, place: int, rank: int, scale: float) -> None:
        self.index += [place] * rank
        self.scales += [scale] * rank

    def on(self, device: torch.device) -> _Gather:
        return _Gather(
            torch.tensor(self.index, dtype=torch.int64, device=device),
            torch.tensor(self.scales, dtype=torch.float32, device=device),
            self.starts,
        )


def _group(projection: Projection, stacks: Sequence[_Stack | None], shifts: Sequence[Sequence[Shift]]) -> Group | None:
    """The adapters of a projection's linears together; views of what lies together already."""
    parts, column, rank = [], 0, 0
    for linear, stack in zip(projection.linears, stacks, strict=True):
        if stack is not None:
            ranks = stack.a.shape[0]
            parts.append(Part(slice(column, column + linear.out_features), slice(rank, rank + ranks), stack.b))
            rank += ranks
        column += linear.out_features
    shift = _group_shift(projection, shifts)
    if not parts:
        if shift is None:
            return None
        nothing = shift.stretch.new_empty((0, projection.linears[0].in_features))
        return Group(nothing, (), len(shift.stretch), shift, None)
    present = [stack for stack in stacks if stack is not None]
    a = joined([stack.a for stack in present])
    if shift is not None:
        return Group(a, tuple(parts), rank + len(shift.stretch), shift, None)
    step, packed = kernels.step_kernels(a.device, a.dtype), None
    if step is not None:
        aligned = [math.gcd(*(rank for _, rank, _ in stack.blocks)) for stack in present]
        packed = step.pack(
            a,
            [
                AdapterPart(part.columns.start, part.ranks.start, part.b, divisor)
                for part, divisor in zip(parts, aligned, strict=True)
            ],
        )
    return Group(a, tuple(parts), rank, None, packed)


def _group_shift(projection: Projection, shifts: Sequence[Sequence[Shift]]) -> _GroupShift | None:
    """The shifts of a projection's linears, each in the columns of its own."""
    rows, column = [], 0
    columns = sum(linear.out_features for linear in projection.linears)
    for linear, each in zip(projection.linears, shifts, strict=True):
        beside = (column, columns - column - linear.out_features)
        rows += [(F.pad(shift.stretch, beside), F.pad(shift.offset, beside)) for shift in each]
        column += linear.out_features
    if not rows:
        return None
    stretches, offsets = zip(*rows, strict=True)
    return _GroupShift(torch.stack(stretches), torch.stack(offsets))


def _refuse_endless(gain: Tensor, adapter: PeftAdapter, magnitude: str) -> None:
    if not gain.isfinite().all():
        raise AdapterError(
            "DoRA's magnitudes cannot be applied: one is not finite, or the adapted weight has a row of zeros.",
            file=adapter.weights_file,
            field=magnitude,
            remedy=_other_base(adapter),
        )


def _other_base(adapter: PeftAdapter) -> str:
    trained = f"It was trained on {adapter.base_model}. " if adapter.base_model else ""
    return f"{trained}Load it on the base model it was trained on."
