"""Copies from the device to the host that later work on the device does not delay."""

from __future__ import annotations

import torch
from torch import Tensor


class PendingReadback:
    """A tensor on its way to the host. Work queued on the device after it does not delay it.

    Args:
        tensor: one dimension, of whole numbers.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._arrived = tensor, None
        if tensor.device.type == "cuda":
            self._tensor = to_host(tensor)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[int]:
        """Block until the copy is complete."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensor.tolist()


def to_host(tensor: Tensor) -> Tensor:
    """Start a copy to pinned memory; it is complete once the host has synchronized with the device."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)
