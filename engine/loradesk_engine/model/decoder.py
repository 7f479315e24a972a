"""The one decoder: built from a config and named weights, features are config fields."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.model import kernels
from loradesk_engine.model.attention import attend
from loradesk_engine.model.batch import Batch, Delta
from loradesk_engine.model.cache import KVCache
from loradesk_engine.model.linear import Embedding, Linear, Projection
from loradesk_engine.model.mlp import Mlp
from loradesk_engine.model.native.recording import Passes
from loradesk_engine.model.norm import Norm, cap
from loradesk_engine.model.rope import Rope, Turns


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        input_norm: before attention.
        qkv: queries, keys and values.
        q_norm, k_norm: of each head, if the model has them.
        attention_norm: on what attention gives, if the model has it.
        mlp_norm: before the MLP; None where attention and MLP are parallel and share `input_norm`.
        out_norm: on what the MLP gives, if the model has it.
        window: how many tokens a token sees; None: all.
    """

    input_norm: Norm
    qkv: Projection
    o_proj: Projection
    mlp: Mlp
    mlp_norm: Norm | None
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    attention_norm: Norm | None = None
    out_norm: Norm | None = None
    window: int | None = None


class Decoder:
    """A decoder-only transformer.

    Attributes:
        linears: every linear in registration order; `linears[i].index == i`. `lm_head` is the last.
        projections: the same linears by what they read; `projections[i].number == i`. `lm_head`'s is the last.
        embedding: token ids to vectors.
        nbytes: memory that the weights hold; tied ones count once.
        parameters: count of weights; tied ones count once.
        native: whether most of its products are done by the compiled kernels.
    """

    def __init__(  # noqa: PLR0913 - all parts of a model; `build` is the only caller
        self,
        config: ModelConfig,
        embedding: Embedding,
        layers: Sequence[Layer],
        norm: Norm,
        linears: Sequence[Linear],
        projections: Sequence[Projection],
        *,
        device: torch.device,
        dtype: torch.dtype,
        context: int,
        parameters: int,
        nbytes: int,
    ) -> None:
        self.config = config
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self._following_norms = [*(layer.input_norm for layer in layers[1:]), norm]
        self.linears = linears
        self.projections = projections
        self._lm_head = projections[-1]
        self.device = device
        self.dtype = dtype
        self.parameters = parameters
        sizes = [(linear.is_native, linear.in_features * linear.out_features) for linear in linears]
        self.native = 2 * sum(size for native, size in sizes if native) >= sum(size for _, size in sizes)
        self.nbytes = nbytes
        self._rope = Rope(config.rope, context, device, dtype)
        self._local_rope = Rope(config.local_rope, context, device, dtype) if config.local_rope else self._rope
        self._embedding_scale = (
            None if config.embedding_scale is None else torch.tensor(config.embedding_scale, device=device).to(dtype)
        )
        self._passes = Passes() if self.native and device.type == "cpu" else None
        kv_size = config.num_kv_heads * config.head_dim
        self._qkv_sizes = [config.num_heads * config.head_dim, kv_size, kv_size]

    def new_cache(self) -> KVCache:
        """An empty KV cache that fits this model."""
        return KVCache(self.config, self.device, self.dtype)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm, [rows, hidden]. The batch's keys and values are in the cache afterwards.

        The cache must have room for every segment (`cache.reserve`); a batch with `slots` needs `reserve` first.
        """
        step = kernels.in_use()
        assert step is None or step.dtype in (None, self.dtype), "kernels of another type write beyond their tensors"
        longest = max((segment.past + segment.length for segment in batch.segments), default=0)
        self.reserve(longest)
        hidden = self.embedding(batch.token_ids)  # [rows, hidden]
        if self._embedding_scale is not None:
            hidden = hidden * self._embedding_scale
        x = self.layers[0].input_norm(hidden)
        layers = functools.partial(self._pass, cache=cache)
        if self._passes is None or step is None:
            return layers(hidden, x, batch)
        return self._passes.run(hidden, x, batch, cache, self.rope_tables, layers)

    def _pass(self, hidden: Tensor, x: Tensor, batch: Batch, cache: KVCache) -> Tensor:
        """All layers, from what is embedded and that normalised [rows, hidden] to what the last norm gives."""
        config, delta = self.config, batch.delta
        whole, local = Turns(self._rope, batch), Turns(self._local_rope, batch)
        for number, (layer, next_norm) in enumerate(zip(self.layers, self._following_norms, strict=True)):
            q, k, v = self._qkv(layer, x, delta)
            attended = attend(
                q,
                k,
                v,
                whole if layer.window is None else local,
                cache.keys[number],
                cache.values[number],
                batch,
                config.attention_scale,
                layer.window,
                config.attention_cap,
            )
            attended = layer.o_proj(attended, delta)
            if layer.attention_norm is not None:
                attended = layer.attention_norm(attended)
            if layer.mlp_norm is None:  # parallel: both read the same norm
                hidden, x = next_norm.add(hidden, attended + layer.mlp(x, delta))
                continue
            hidden, x = layer.mlp_norm.add(hidden, attended)
            out = layer.mlp(x, delta)
            hidden, x = next_norm.add(hidden, out if layer.out_norm is None else layer.out_norm(out))
        return x

    def reserve(self, positions: int) -> None:
        """Prepare what depends on how long sequences are, for this many positions."""
        self._rope.reserve(positions)
        self._local_rope.reserve(positions)

    @property
    def rope_tables(self) -> tuple[Tensor, ...]:
        """What the rotations read at the moment."""
        return (*self._rope.tables, *self._local_rope.tables)

    def _qkv(self, layer: Layer, x: Tensor, delta: Delta | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [rows, heads, head_dim], keys and values [rows, kv_heads, head_dim]."""
        parts = layer.qkv(x, delta).split(self._qkv_sizes, dim=-1)  # type: ignore[no-untyped-call]
        q, k, v = (part.view(x.shape[0], -1, self.config.head_dim) for part in parts)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = layer.q_norm(q), layer.k_norm(k)
        return q, k, v

    def logits(self, hidden: Tensor, delta: Delta | None = None) -> Tensor:
        """float32 [rows, vocab] of hidden states [rows, hidden]. `delta` must be for these rows."""
        logits = self._lm_head(hidden, delta)
        if self.config.logits_cap is not None:
            logits = cap(logits, self.config.logits_cap)
        return logits.float()
