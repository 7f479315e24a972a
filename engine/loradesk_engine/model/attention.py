"""Attention of the rows of a batch over their slots of the KV cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.norm import cap
from loradesk_engine.model.rope import Turns

# cuDNN's attention plans anew for every length, which takes longer than a step
torch.backends.cuda.enable_cudnn_sdp(False)


def attend(  # noqa: PLR0917 - the signature of a step's kernel, which does the same
    q: Tensor,
    k: Tensor,
    v: Tensor,
    turns: Turns,
    keys: Tensor,
    values: Tensor,
    batch: Batch,
    scale: float,
    window: int | None,
    limit: float | None = None,
) -> Tensor:
    """Rotate, write the new keys and values into the cache, and attend causally over all that a slot holds.

    Args:
        q: [rows, heads, head_dim], not rotated yet.
        k, v: [rows, kv_heads, head_dim], k not rotated yet.
        turns: the rotation.
        keys, values: one layer of the cache, [slots, kv_heads, capacity, head_dim].
        batch: whose rows these are. A sequence attends only over its own slot, so that it does not matter what it is
            batched with.
        scale: factor of the products before the softmax.
        window: a token sees this many tokens, itself included; None: all.
        limit: soft cap of the products; None: none.

    Returns:
        [rows, heads * head_dim]
    """
    step = kernels.in_use()
    if step is not None:
        return step.attend(q, k, v, turns.tables, keys, values, batch, scale, window, limit)
    rows, heads, head_dim = q.shape
    q, k = turns(q), turns(k)
    out = torch.empty_like(q)
    for segment in batch.segments:
        first, last = segment.start, segment.start + segment.length
        end = segment.past + segment.length
        slot_keys, slot_values = keys[segment.slot], values[segment.slot]  # [kv_heads, capacity, head_dim]
        slot_keys[:, segment.past : end] = k[first:last].transpose(0, 1)
        slot_values[:, segment.past : end] = v[first:last].transpose(0, 1)
        # a row at position p sees p - window + 1 .. p: earlier keys are of no use to the first row already
        begin = max(0, segment.past - window + 1) if window is not None else 0
        seen_keys, seen_values = slot_keys[None, :, begin:end], slot_values[None, :, begin:end]
        if limit is not None:
            out[first:last] = _attend_capped(
                q[first:last], seen_keys[0], seen_values[0], _visible(batch, segment, begin, window), scale, limit
            )
        elif segment.length == 1:
            out[first] = _attend_one(q[first], seen_keys, seen_values, scale)
        else:
            mask = None if _is_square(segment, window) else _visible(batch, segment, begin, window)
            if mask is not None and q.device.type == "cuda":  # the fused kernel that takes a mask knows no groups
                shape = (1, heads, end - begin, head_dim)
                seen_keys = seen_keys[:, :, None].expand(-1, -1, heads // k.shape[1], -1, -1).reshape(shape)
                seen_values = seen_values[:, :, None].expand(-1, -1, heads // k.shape[1], -1, -1).reshape(shape)
            attended = F.scaled_dot_product_attention(
                q[first:last].transpose(0, 1)[None],
                seen_keys,
                seen_values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=heads != seen_keys.shape[1],
            )
            out[first:last] = attended[0].transpose(0, 1)
    return out.view(rows, heads * head_dim)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One row needs no mask, so the query heads that share a key head can stand where queries of one head would.

    q: [heads, head_dim], keys, values: [1, kv_heads, length, head_dim] -> [heads, head_dim]
    """
    grouped = q.view(1, keys.shape[1], -1, q.shape[-1])  # [1, kv_heads, heads of a group, head_dim]
    return F.scaled_dot_product_attention(grouped, keys, values, scale=scale).reshape(q.shape)


def _attend_capped(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, limit: float) -> Tensor:
    """Written out, because no fused attention has a soft cap.

    q: [length, heads, head_dim], keys, values: [kv_heads, seen, head_dim], visible: bool [length, seen] -> like q
    """
    length, heads, head_dim = q.shape
    kv_heads = keys.shape[0]
    grouped = q.view(length, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)  # [kv, group, length, dim]
    scores = cap(grouped @ keys[:, None].transpose(-1, -2) * scale, limit)
    scores = scores.masked_fill(~visible, -torch.inf)
    weights = torch.softmax(scores.float(), dim=-1).to(q.dtype)
    return (weights @ values[:, None]).permute(2, 0, 1, 3).reshape(length, heads, head_dim)


def _is_square(segment: Segment, window: int | None) -> bool:
    """Whether plain causal attention over a square is meant, which needs no mask."""
    return segment.past == 0 and (window is None or segment.length <= window)


def _visible(batch: Batch, segment: Segment, begin: int, window: int | None) -> Tensor:
    """Which keys each row sees, bool [length, keys from `begin` on]."""
    visible: Tensor | None = batch.shared.get((segment, window))
    if visible is None:
        end, device = segment.past + segment.length, batch.positions.device
        rows = torch.arange(segment.past, end, device=device)[:, None]
        columns = torch.arange(begin, end, device=device)[None, :]
        visible = columns <= rows
        visible = visible if window is None else visible & (columns > rows - window)
        batch.shared[segment, window] = visible
    return visible
