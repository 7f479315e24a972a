"""What DoRA and biases change beside `B A x`: y += s * (stretch * y_base + offset), output by output.

With DoRA (https://arxiv.org/abs/2402.09353) the adapted weight is `gain * (W + scale * B A)`, row by row, with
`gain = magnitude / ||W + scale * B A||`. The base has computed `W x` already, so what is left of that is
`(gain - 1) * W x`, and `gain * B` takes the place of B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loradesk_engine.model.linear import Linear


@dataclass(frozen=True)
class Shift:
    """One adapter's on one linear, whose output has the base's bias in it.

    Attributes:
        uid: the adapter's.
        stretch, offset: [out].
    """

    uid: int
    stretch: Tensor
    offset: Tensor

    @property
    def nbytes(self) -> int:
        return self.stretch.nbytes + self.offset.nbytes

    def to(self, dtype: torch.dtype) -> Shift:
        return Shift(self.uid, self.stretch.to(dtype), self.offset.to(dtype))


def gain_of(linear: Linear, a: Tensor, b: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """DoRA's gain, [out]; not finite where a row of `W + scale * B A` is zero. All in float32, on the linear's device.

    a: [rank, in], b: [out, rank], magnitude: [out]
    """
    norms, start = [], 0
    for weight in linear.weight_slices():
        end = start + weight.shape[0]
        norms.append(torch.addmm(weight, b[start:end], a, alpha=scale).norm(dim=1))
        start = end
    return magnitude / torch.cat(norms)


def shift_of(uid: int, linear: Linear, gain: Tensor | None, added: Tensor | None, trained: Tensor | None) -> Shift:
    """The shift of an adapter on a linear, on the device of what is given; at least one of them is.

    Args:
        gain: [out], float32, DoRA's.
        added: [out], float32, what is added to each output.
        trained: [out], float32, what the base's bias became in training; the linear has one then.
    """
    given = next(tensor for tensor in (gain, added, trained) if tensor is not None)
    stretch = torch.zeros_like(given) if gain is None else gain - 1
    offset = torch.zeros_like(given) if added is None else added
    if linear.bias is not None:
        base = linear.bias.float()
        offset = offset - stretch * base  # DoRA leaves the bias as it is
        if trained is not None:
            offset = offset + (trained - base)
    return Shift(uid, stretch, offset)
