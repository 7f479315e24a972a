"""Attention of the rows of a batch over their slots of the KV cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.model.batch import Segment
from loradesk_engine.model.norm import cap


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    segments: tuple[Segment, ...],
    scale: float,
    window: int | None,
    limit: float | None = None,
) -> Tensor:
    """Write the new keys and values into the cache and attend causally over all that a slot holds.

    Args:
        q: [rows, heads, head_dim], rotated.
        k, v: [rows, kv_heads, head_dim], k rotated.
        keys, values: one layer of the cache, [slots, kv_heads, capacity, head_dim].
        segments: whose rows these are. A sequence attends only over its own slot, so that it does not matter what it is
            batched with.
        scale: factor of the products before the softmax.
        window: a token sees this many tokens, itself included; None: all.
        limit: soft cap of the products; None: none.

    Returns:
        [rows, heads * head_dim]
    """
    rows, heads, head_dim = q.shape
    out = torch.empty_like(q)
    for segment in segments:
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
                q[first:last], seen_keys[0], seen_values[0], _visible(segment, begin, window, q.device), scale, limit
            )
        elif segment.length == 1:
            out[first] = _attend_one(q[first], seen_keys, seen_values, scale)
        else:
            mask = None if _is_square(segment, window) else _visible(segment, begin, window, q.device)
            attended = F.scaled_dot_product_attention(
                q[first:last].transpose(0, 1)[None],
                seen_keys,
                seen_values,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=heads != k.shape[1],
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


def _visible(segment: Segment, begin: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each row sees, bool [length, keys from `begin` on]."""
    end = segment.past + segment.length
    rows = torch.arange(segment.past, end, device=device)[:, None]
    columns = torch.arange(begin, end, device=device)[None, :]
    visible = columns <= rows
    return visible if window is None else visible & (columns > rows - window)
