"""The one explicit thing that goes down the model: which tokens, where they belong, and how adapters change them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


class Delta(Protocol):
    """What adapters add to linears for the rows of one batch.

    Attributes:
        form: the same object for deltas that differ in their factors only; None: this one is like no other.
        factors: [rows or 1, factors] what the ranks of the adapters are multiplied by.
    """

    @property
    def form(self) -> object | None: ...

    @property
    def factors(self) -> Tensor: ...

    def with_factors(self, factors: Tensor) -> Delta:
        """The same with other factors of the same shape, which are read when the delta is used."""
        ...

    def begin(self, number: int, x: Tensor) -> Any:
        """What needs only the input of projection `number`, while the base's product runs; `add` is given it."""
        ...

    def add(self, number: int, x: Tensor, y: Tensor, begun: Any) -> Tensor:
        """Output of projection `number` with the adapters' part. x: [rows, in], y: [rows, out], the base's own output.

        May change `y` in place. Returns `y` itself, untouched, when no adapter of these rows is on this projection.
        """
        ...

    def take(self, rows: Tensor) -> Delta:
        """The same for some of the rows, int64 [chosen]: a mixture of experts sends each row elsewhere."""
        ...


@dataclass(frozen=True)
class Segment:
    """Rows of a batch that continue one sequence.

    Attributes:
        slot: place of the sequence in the KV cache.
        start: first row in the batch.
        length: count of rows.
        past: positions of the slot that are filled before these rows.
    """

    slot: int
    start: int
    length: int
    past: int


@dataclass(frozen=True)
class Batch:
    """Tokens of one forward pass; rows of all segments lie one after the other, nothing is padded.

    Attributes:
        token_ids: int64 [rows].
        positions: int64 [rows], position of each token in its own sequence.
        segments: which rows belong to which slot.
        delta: the adapters' part; None runs the base model.
        slots: int64 [rows], or None. If given, each row is a next token of its slot, `segments` is empty, and all that
            differs from step to step is read on the device: such a pass can be captured in a CUDA graph. Only within
            `kernels.used`.
        columns: int64 [rows], with `slots`: where in its slot each row's keys and values go. It is the position, but
            for several candidates of one position: those go into columns of their own from there on, and see nothing
            of each other.
        shared: what is made once for all layers, by whoever needs it.
    """

    token_ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    delta: Delta | None = None
    slots: Tensor | None = None
    columns: Tensor | None = None
    shared: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
