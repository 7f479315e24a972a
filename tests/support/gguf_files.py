"""GGUF files of tiny models, written with the `gguf` package as llama.cpp's converter lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GEMMA_NAMES = LLAMA_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k in llama.cpp's order: the two halves of each head interleaved."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_keys(
    writer: gguf.GGUFWriter,
    config: PretrainedConfig,
    architecture: str,
    extra: Mapping[str, float | int | str | list[bool]],
) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    if architecture == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    for key, value in extra.items():
        kinds = {float: "float32", int: "uint32", bool: "bool", str: "string", list: "array"}
        name = f"{architecture}.{key.replace('__', '.')}"
        writer.kv_data[0].pop(name, None)
        getattr(writer, f"add_{kinds[type(value)]}")(name, value)


def write_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """A vocabulary of so many tokens with one merge."""
    letters = [chr(33 + n) if n < 94 else chr(161 + n) for n in range(size)]
    letters[-1] = letters[0] + letters[1]  # a merge, since the package writes no empty list
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(letters)
    writer.add_token_types([1] * size)
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_eos_token_id(0)


def write(
    model: PreTrainedModel,
    path: Path,
    architecture: str,
    kind: str = "F32",
    rope_freqs: np.ndarray | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    embedding: str | None = None,
    **extra: float | int | str | list[bool],
) -> dict[str, torch.Tensor]:
    """Write the model with matrices of type `kind`; returns the weights that the file stands for, by transformers'
    name.

    Args:
        rope_freqs: divisors of the rotation's frequencies, as files of Llama 3 have them; the last tensor here.
        tensors: more of float32.
        embedding: type of the embedding's matrix; `kind` as well if it is None.
        extra: more keys of the architecture, with __ for dots; a later one replaces an earlier one.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    write_keys(writer, config, architecture, extra)
    write_tokenizer(writer, config.vocab_size)
    names = GEMMA_NAMES if architecture in ("gemma2", "gemma3") else LLAMA_NAMES

    def store(short: str, data: np.ndarray) -> np.ndarray:
        """Write a tensor, quantized if it is a matrix; the values that the file stands for."""
        stored = np.ascontiguousarray(data)
        if data.ndim == 1 or kind == "F32":
            writer.add_tensor(short, stored)
            return data
        own = embedding if embedding is not None and short.startswith("token_embd") else kind
        quantized = getattr(gguf.GGMLQuantizationType, own)
        packed = gguf.quants.quantize(stored, quantized)
        writer.add_tensor(short, packed, raw_dtype=quantized)
        return gguf.quants.dequantize(packed, quantized)

    stands_for = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.detach().float().numpy()
        block = name.split(".")
        if block[-2] == "experts":  # all experts of a layer in one tensor, gate and up one after the other
            parts = np.split(data, 2, axis=1) if block[-1] == "gate_up_proj" else [data]
            shorts = ("ffn_gate_exps", "ffn_up_exps") if block[-1] == "gate_up_proj" else ("ffn_down_exps",)
            values = [store(f"blk.{block[2]}.{short}.weight", part) for short, part in zip(shorts, parts, strict=True)]
            stands_for[name] = torch.from_numpy(np.concatenate(values, axis=1))
            continue
        stem, _, suffix = name.rpartition(".")
        block = stem.split(".")
        if block[1:2] == ["layers"]:
            short = f"blk.{block[2]}.{names['.'.join(block[3:])]}.{suffix}"
        else:
            short = f"{names[stem]}.{suffix}"
        if architecture.startswith("gemma") and "norm" in stem:
            data = data + 1
        rotated = architecture == "llama" and stem.endswith(("q_proj", "k_proj"))
        heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
        values = store(short, permuted(data, heads) if rotated else data)
        if data.ndim == 1 or kind == "F32":
            stands_for[name] = tensor.detach().float()
            continue
        if rotated:  # back to transformers' order
            half = values.shape[0] // heads // 2
            values = values.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
        stands_for[name] = torch.from_numpy(np.ascontiguousarray(values))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for
