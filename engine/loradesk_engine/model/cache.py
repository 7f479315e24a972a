"""The KV cache: static slots that grow to the need."""

from __future__ import annotations

import torch
from torch import Tensor

from loradesk_engine.formats.config import ModelConfig

GROWTH = 256  # positions; slots are sized in multiples of it


class KVCache:
    """Keys and values of every layer for a number of slots, one sequence to a slot.

    keys[layer], values[layer]: [slots, kv_heads, capacity, head_dim]

    Memory that no token has reached yet is not touched, so on the CPU it costs nothing until then.
    """

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        self.slots = 0
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Memory that is reserved."""
        return sum(tensor.nbytes for tensor in self.keys) * 2

    def reserve(self, slots: int, positions: int) -> bool:
        """Make room for `slots` sequences of `positions` tokens; what is there stays. Returns whether it lies elsewhere
        now.

        Raises:
            RuntimeError, MemoryError: there is no memory for it. The cache is empty then.
        """
        if slots <= self.slots and positions <= self.capacity:
            return False
        slots = max(slots, self.slots)
        if positions > self.capacity:  # at least half as much again, so that growth costs little a token
            wanted = max(positions, self.capacity + self.capacity // 2)
            capacity = -(-wanted // GROWTH) * GROWTH
        else:
            capacity = self.capacity
        try:
            self.keys = self._grown(self.keys, slots, capacity)
            self.values = self._grown(self.values, slots, capacity)
        except BaseException:  # some layers are let go of already
            self.clear()
            raise
        self.slots, self.capacity = slots, capacity
        return True

    def move(self, slot: int, column: int, target: int) -> None:
        """Put what lies in one column of a slot into another one."""
        for tensor in (*self.keys, *self.values):
            tensor[slot, :, target] = tensor[slot, :, column]

    def clear(self) -> None:
        """Let go of all memory, also of what somebody else has these lists for."""
        self.keys.clear()
        self.values.clear()
        self.keys, self.values = [], []
        self.slots = self.capacity = 0

    def _grown(self, old: list[Tensor], slots: int, capacity: int) -> list[Tensor]:
        shape = (slots, self.config.num_kv_heads, capacity, self.config.head_dim)
        grown = []
        for layer in range(self.config.num_layers):
            tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
            if old:
                tensor[: self.slots, :, : self.capacity] = old[layer]
                old[layer] = torch.empty(0)  # let go of each layer as it is copied: two caches are never held at once
            grown.append(tensor)
        return grown
