"""A decoder from a checkpoint's named tensors. Missing, unexpected or misshapen tensors are errors, never guesses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from loradesk_engine.errors import CheckpointError
from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.model.decoder import Decoder, Layer
from loradesk_engine.model.linear import DenseLinear, fast_layout

# Old checkpoints carry tables that are computed from the config today.
IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def build_decoder(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Decoder:
    """Build the decoder that `config` describes.

    Each tensor is brought to `device` and `dtype` by itself; one that is there already is used as it is, so a
    memory-mapped checkpoint of the same type costs no copy.

    Args:
        weights: name -> tensor, read when asked for.
        folder: the checkpoint, for error messages.
        progress: called with the fraction that is done; may raise to cancel.

    Raises:
        CheckpointError: a tensor is missing, not expected, or of another shape or type than the config says.
    """
    taken: set[str] = set()
    expected = config.num_layers * 9 + 3

    def take(name: str, *shape: int) -> Tensor:
        if name not in weights:
            raise CheckpointError(
                "The tensor is missing.", file=folder, field=name, remedy="The checkpoint does not fit its config.json."
            )
        tensor = weights[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"The tensor has shape {list(tensor.shape)}, the config says {list(shape)}.", file=folder, field=name
            )
        if tensor.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"The type {tensor.dtype} is not supported here.", file=folder, field=name)
        taken.add(name)
        progress(min(1.0, len(taken) / expected))
        return tensor.to(device, dtype)

    linears = 0

    def linear(path: str, in_features: int, out_features: int, bias: bool) -> DenseLinear:
        nonlocal linears
        weight = fast_layout(take(f"{path}.weight", out_features, in_features))
        result = DenseLinear(path, linears, weight, take(f"{path}.bias", out_features) if bias else None)
        linears += 1
        return result

    hidden, heads = config.hidden_size, config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    embedding = take("model.embed_tokens.weight", config.vocab_size, hidden)
    if config.tie_embeddings:  # one matrix for both, so in the layout of the one that costs more
        embedding = fast_layout(embedding)
    layers = []
    for number in range(config.num_layers):
        path = f"model.layers.{number}"
        attention, mlp = f"{path}.self_attn", f"{path}.mlp"
        layers.append(
            Layer(
                input_norm=take(f"{path}.input_layernorm.weight", hidden),
                q_proj=linear(f"{attention}.q_proj", hidden, heads, config.qkv_bias),
                k_proj=linear(f"{attention}.k_proj", hidden, kv_heads, config.qkv_bias),
                v_proj=linear(f"{attention}.v_proj", hidden, kv_heads, config.qkv_bias),
                o_proj=linear(f"{attention}.o_proj", heads, hidden, config.o_bias),
                post_norm=take(f"{path}.post_attention_layernorm.weight", hidden),
                gate_proj=linear(f"{mlp}.gate_proj", hidden, config.intermediate_size, config.mlp_bias),
                up_proj=linear(f"{mlp}.up_proj", hidden, config.intermediate_size, config.mlp_bias),
                down_proj=linear(f"{mlp}.down_proj", config.intermediate_size, hidden, config.mlp_bias),
                q_norm=take(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
                k_norm=take(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
            )
        )
    norm = take("model.norm.weight", hidden)
    if config.tie_embeddings:
        lm_head = DenseLinear("lm_head", linears, embedding)
        taken.add("lm_head.weight")  # some checkpoints save the tied matrix twice
    else:
        lm_head = linear("lm_head", hidden, config.vocab_size, False)
    unexpected = [name for name in weights if name not in taken and not name.endswith(IGNORED_ENDINGS)]
    if unexpected:
        raise CheckpointError(
            f"{len(unexpected)} tensors are not part of {config.architecture}.",
            file=folder,
            field=unexpected[0],
            remedy="The checkpoint does not fit its config.json.",
        )
    progress(1.0)
    return Decoder(config, embedding, layers, norm, lm_head, device, dtype)
