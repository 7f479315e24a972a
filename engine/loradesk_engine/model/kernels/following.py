"""X-LoRA's next decoding step from the drawn tokens, without the host: which guess was right, and what follows from it.

The rows of a step: a generation row of each sequence, then `guesses` scaling rows of each, which hold the tokens that
may come next. They all stand at the position of the next token, each in a column of the cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _right_guess(tokens, first, wanted, guesses):
    """Number of the first guess that is the wanted token; `guesses` if none is."""
    found = guesses + 0
    for others in range(guesses):
        number = guesses - 1 - others
        found = tl.where(tl.load(tokens + first + number) == wanted, number, found)
    return found


@triton.jit(do_not_specialize=["rows", "sequences", "guesses"])
def _keep_column(
    caches, like, inputs, drawn, rows, sequences, guesses, slot_stride, head_stride,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    head = tl.program_id(2)
    first = sequences + sequence * guesses
    guess = _right_guess(inputs, first, tl.load(drawn + sequence), guesses)
    if (guess > 0) & (guess < guesses):
        column = tl.load(inputs + 2 * rows + first)
        slot = tl.load(inputs + 3 * rows + first)
        cache = tl.load(caches + tl.program_id(1)).to(tl.pointer_type(like.dtype.element_ty))
        target = cache + slot * slot_stride + head * head_stride + column * SIZE
        members = tl.arange(0, BLOCK)
        inside = members < SIZE
        tl.store(target + members, tl.load(target + guess * SIZE + members, mask=inside), mask=inside)


@triton.jit(do_not_specialize=["rows", "sequences", "guesses"])
def _follow(
    inputs, following, drawn, best, predicted, weights, scalings, rows, sequences, guesses, width,
    ADAPTERS: tl.constexpr, BEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    first = sequences + sequence * guesses
    token = tl.load(drawn + sequence)
    guess = _right_guess(inputs, first, token, guesses)
    right = guess < guesses
    source = (first + tl.where(right, guess, 0)).to(tl.int64)
    position = tl.load(inputs + rows + first)
    tl.store(following + sequence, token)
    tl.store(following + rows + sequence, position)
    tl.store(following + 2 * rows + sequence, position)
    for number in range(guesses):
        row = first + number
        likely = tl.maximum(tl.load(best + source * BEST + number), 0)
        tl.store(following + row, tl.where(right, likely, token))
        tl.store(following + rows + row, position + tl.where(right, 1, 0))
        tl.store(following + 2 * rows + row, position + tl.where(right, 1 + number, 0))
    if right:
        for start in range(0, width, BLOCK):
            members = start + tl.arange(0, BLOCK)
            inside = members < width
            value = tl.load(predicted + source * width + members, mask=inside)
            weight = tl.load(weights + sequence * ADAPTERS + members % ADAPTERS, mask=inside)
            tl.store(scalings + sequence.to(tl.int64) * width + members, value * weight, mask=inside)


def keep_columns(inputs: Tensor, drawn: Tensor, guesses: int, caches: Tensor, like: Tensor) -> None:
    """Move the keys and values of each right guess that is not the first to the column of the first.

    Args:
        inputs, drawn, guesses: as of `follow`.
        caches: int64 [tensors], addresses of every layer's keys and values.
        like: one of these tensors, [slots, kv_heads, capacity, head_dim].
    """
    size, sequences = like.shape[3], len(drawn)
    _keep_column[(sequences, len(caches), like.shape[1])](
        caches, like, inputs, drawn, inputs.shape[1], sequences, guesses, like.stride(0), like.stride(1),
        size, triton.next_power_of_2(size), num_warps=1,
    )  # fmt: skip


def follow(
    inputs: Tensor, drawn: Tensor, guesses: int, best: Tensor, predicted: Tensor, weights: Tensor, scalings: Tensor
) -> None:
    """Turn the inputs of a step into those of the next one.

    Where a guess was right, the generation row takes the token and the scalings of the guess's row, and the scaling
    rows take what the base holds likely after it. Where none was, the generation row computes nothing of use, and the
    scaling rows the drawn token. A sequence of which that is true takes its token, whose scalings are there then, as
    the drawn one the next time.

    Args:
        inputs: int64 [4, rows]: tokens, positions, columns, slots. Changed in place, for the rows that are used.
        drawn: int64 [sequences].
        best: int64 [rows, at least guesses], likeliest tokens.
        predicted: float32 [rows, layers, adapters], what the classifier gave.
        weights: float32 [sequences, adapters], what scalings are multiplied by.
        scalings: float32 [rows, layers, adapters], of the next step. Changed in place for the generation rows.
    """
    sequences, adapters = weights.shape
    following = inputs.clone()  # warps of one program could see each other's changes
    _follow[(sequences,)](
        inputs, following, drawn, best, predicted, weights, scalings,
        inputs.shape[1], sequences, guesses, predicted.shape[1] * adapters,
        adapters, best.shape[1], 1024, num_warps=4,
    )  # fmt: skip
    inputs.copy_(following)


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """Where tensors lie, int64 [tensors], on their device."""
    return torch.tensor([tensor.data_ptr() for tensor in tensors], device=tensors[0].device)
