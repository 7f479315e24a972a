"""The one decoder: built from a config and named weights, features are config fields."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.model.attention import attend
from loradesk_engine.model.batch import Batch, Delta
from loradesk_engine.model.cache import KVCache
from loradesk_engine.model.linear import Linear
from loradesk_engine.model.rope import Rope, rotate


@dataclass(frozen=True)
class Layer:
    """Weights of one decoder layer; norms are [hidden_size], q_norm and k_norm [head_dim] or None."""

    input_norm: Tensor
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    o_proj: Linear
    post_norm: Tensor
    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


class Decoder:
    """A decoder-only transformer.

    Attributes:
        linears: every linear in registration order; `linears[i].index == i`. `lm_head` is the last.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Tensor,
        layers: list[Layer],
        norm: Tensor,
        lm_head: Linear,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.config = config
        self.embedding = embedding  # [vocab, hidden]
        self.layers = layers
        self.norm = norm  # [hidden]
        self.lm_head = lm_head
        self.device = device
        self.dtype = dtype
        self.rope = Rope(config.rope, config.head_dim, device, dtype)
        self.linears: list[Linear] = [
            linear
            for layer in layers
            for linear in (
                layer.q_proj,
                layer.k_proj,
                layer.v_proj,
                layer.o_proj,
                layer.gate_proj,
                layer.up_proj,
                layer.down_proj,
            )
        ] + [lm_head]
        self._attention_scale = config.head_dim**-0.5

    @property
    def parameters(self) -> int:
        """Count of weights; tied ones count once."""
        tied = self.config.tie_embeddings
        linears = self.linears[:-1] if tied else self.linears
        norms = sum(layer.input_norm.numel() + layer.post_norm.numel() for layer in self.layers)
        return (
            self.embedding.numel()
            + sum(linear.in_features * linear.out_features for linear in linears)
            + norms
            + self.norm.numel()
        )

    @property
    def nbytes(self) -> int:
        """Memory that the weights hold; tied ones count once."""
        linears = self.linears[:-1] if self.config.tie_embeddings else self.linears
        return self.embedding.nbytes + sum(linear.nbytes for linear in linears)

    def new_cache(self) -> KVCache:
        """An empty KV cache that fits this model."""
        return KVCache(self.config, self.device, self.dtype)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Hidden states after the final norm, [rows, hidden]. The batch's keys and values are in the cache afterwards.

        The cache must have room for every segment (`cache.reserve`).
        """
        config, delta = self.config, batch.delta
        self.rope.reserve(max((segment.past + segment.length for segment in batch.segments), default=0))
        cos, sin = self.rope.at(batch.positions)
        hidden = F.embedding(batch.token_ids, self.embedding)  # [rows, hidden]
        for number, layer in enumerate(self.layers):
            x = self._norm(hidden, layer.input_norm)
            q = project(layer.q_proj, x, delta).view(-1, config.num_heads, config.head_dim)
            k = project(layer.k_proj, x, delta).view(-1, config.num_kv_heads, config.head_dim)
            v = project(layer.v_proj, x, delta).view(-1, config.num_kv_heads, config.head_dim)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
            attended = attend(
                rotate(q, cos, sin),
                rotate(k, cos, sin),
                v,
                cache.keys[number],
                cache.values[number],
                batch.segments,
                self._attention_scale,
                config.sliding_window,
            )
            hidden = hidden + project(layer.o_proj, attended, delta)
            x = self._norm(hidden, layer.post_norm)
            gated = self._activation(project(layer.gate_proj, x, delta)) * project(layer.up_proj, x, delta)
            hidden = hidden + project(layer.down_proj, gated, delta)
        return self._norm(hidden, self.norm)

    def logits(self, hidden: Tensor, delta: Delta | None = None) -> Tensor:
        """float32 [rows, vocab] of hidden states [rows, hidden]. `delta` must be for these rows."""
        return project(self.lm_head, hidden, delta).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (weight.shape[0],), weight, self.config.norm_eps)

    def _activation(self, x: Tensor) -> Tensor:
        if self.config.activation == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if self.config.activation == "gelu_tanh" else "none")


def project(linear: Linear, x: Tensor, delta: Delta | None) -> Tensor:
    """A linear with the adapters' part. x: [rows, in] -> [rows, out]"""
    y = linear(x)
    return y if delta is None else delta.add(linear.index, x, y)
