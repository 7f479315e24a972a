"""Scalings as they are kept: means for each token, and the whole array in few bits."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loradesk_desk.errors import StoreError

if TYPE_CHECKING:  # numpy is imported with the first array: the window is painted before
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.float32]

Bits = Literal[8, 16]
_HEAD = struct.Struct("<BBff")  # bits, axes, lowest and highest value; then a uint32 an axis
MAX_NUMBERS = 2**28  # in one array: a damaged header must not ask for more memory than this


@dataclass(frozen=True)
class KeptScalings:
    """The scalings of one answer as they were when it was generated.

    Attributes:
        start: index of the first row's token in the whole sequence (prompt and answer).
        adapters: names, in the order of the last axis.
        means: float32 [tokens, adapters], means over the layers.
        whole: float32 [tokens, layers, adapters] to within half a step of its bits; None where it was not kept.
    """

    start: int
    adapters: tuple[str, ...]
    means: Array
    whole: Array | None = None


def pack(array: Array, bits: Bits) -> bytes:
    """An array in 8 or 16 bits a number and compressed. The error is at most half a step: (highest - lowest) / 510 with
    8 bits, / 131,070 with 16.
    """
    import numpy as np

    array = np.ascontiguousarray(array, np.float32)
    lowest, highest = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    steps = 2**bits - 1
    scale = (highest - lowest) / steps or 1.0
    codes = np.rint((array - lowest) / scale).clip(0, steps).astype("<u2" if bits == 16 else np.uint8)
    # The bytes of neighbouring tokens are alike; high and low bytes apart compress better than side by side.
    planes = codes.view(np.uint8).reshape(-1, bits // 8).T
    shape = struct.pack(f"<{array.ndim}I", *array.shape)
    return _HEAD.pack(bits, array.ndim, lowest, highest) + shape + zlib.compress(planes.tobytes(), 1)


def unpack(data: bytes) -> Array:
    """The array of `pack`, in float32.

    Raises:
        StoreError: the bytes are damaged.
    """
    import numpy as np

    try:
        bits, axes, lowest, highest = _HEAD.unpack_from(data)
        shape = struct.unpack_from(f"<{axes}I", data, _HEAD.size)
        count = int(np.prod(shape, dtype=object)) if axes else 1
        if bits not in (8, 16) or count > MAX_NUMBERS:
            raise ValueError("unknown form")
        size = count * bits // 8
        stream = zlib.decompressobj()
        body = stream.decompress(data[_HEAD.size + 4 * axes :], size + 1)
        if len(body) != size or not stream.eof:
            raise ValueError("wrong length")
    except (struct.error, zlib.error, ValueError) as problem:
        raise StoreError(f"Kept scalings are damaged: {problem}.", field="scalings") from None
    planes = np.frombuffer(body, np.uint8).reshape(bits // 8, -1)
    codes = np.ascontiguousarray(planes.T).view("<u2" if bits == 16 else np.uint8).reshape(shape)
    scale = (highest - lowest) / (2**bits - 1)
    return (codes * np.float32(scale) + np.float32(lowest)).astype(np.float32)
