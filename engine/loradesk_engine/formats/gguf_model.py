"""A model in a GGUF file: its metadata as a config, its tensors under Hugging Face's names and in its layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loradesk_engine.errors import ConfigError, FileFormatError
from loradesk_engine.formats.config import ModelConfig, parse_config
from loradesk_engine.formats.gguf import GgufFile, GgufTensor
from loradesk_engine.formats.stored import StoredTensor

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}
"""`general.architecture` -> the class that Hugging Face has for it."""

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
OTHERWISE: Mapping[str, Mapping[str, str]] = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "starcoder2": {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
}
EXPERTS = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Numbers of the configuration that lie among the tensors: the only data that is read with the header."""
MAX_ROPE_BYTES = 2**20  # of one of them; real ones have a few hundred


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file, in Hugging Face's order of rows.

    Attributes:
        raw: uint8 [rows, bytes of a row].
        type: GGUF's name of it.
        shape: as Hugging Face has it.
    """

    raw: npt.NDArray[np.uint8]
    type: str
    shape: tuple[int, ...]


class GgufModel:
    """A model in a GGUF file.

    Attributes:
        config: the decoder.
        hf_config: what config.json would say, for the ordering file's check.
        names: Hugging Face's names of the tensors.

    Raises:
        ConfigError, FileFormatError: the architecture is not supported, or a key or tensor is missing or malformed.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.path = file.path
        name = self._plain("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise ConfigError(
                f"The architecture {name!r} is not supported.",
                file=self.path,
                field="general.architecture",
                remedy=f"Supported: {', '.join(ARCHITECTURES)}.",
            )
        parts = self._plain("split.count", 1)
        if parts != 1:
            raise ConfigError(
                f"The file is one of {parts} parts of a model.",
                file=self.path,
                field="split.count",
                remedy="Merge the parts to one file with llama-gguf-split.",
            )
        self._architecture: str = name
        values = self._hf_config()
        self.hf_config = {key: value for key, value in values.items() if value is not None}
        self._places = dict(self._named())
        config = parse_config(values, self.path)
        # a GGUF file holds Gemma's norms with the one added
        self.config: ModelConfig = replace(config, norm_plus_one=False)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._places)

    def entries(self) -> list[StoredTensor]:
        """The tensors as the header describes them; no data is read."""
        entries = []
        for name, (tensor, expert) in self._places.items():
            stacked = expert is not None
            shape = tensor.shape[1:] if stacked else tensor.shape
            entries.append(
                StoredTensor(name, tensor.type, shape, tensor.nbytes // tensor.shape[0] if stacked else tensor.nbytes)
            )
        return entries

    def stored(self, name: str) -> Stored:
        """A tensor by Hugging Face's name."""
        tensor, expert = self._places[name]
        raw = self.file.raw(tensor.name)
        shape = tensor.shape
        if expert is not None:  # one matrix of a stack
            size = len(raw) // shape[0]
            raw, shape = raw[expert * size : (expert + 1) * size], shape[1:]
        rows = shape[0] if len(shape) > 1 else 1
        matrix = raw.reshape(rows, -1)
        if self._architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            matrix = self._unpermuted(matrix, name)
        elif self._architecture == "llama" and name.endswith(("q_proj.bias", "k_proj.bias")):
            matrix = self._unpermuted(matrix.reshape(shape[0], -1), name).reshape(1, -1)
        return Stored(matrix, tensor.type, shape)

    def _unpermuted(self, rows: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.uint8]:
        """Rows of q or k in Hugging Face's order. llama.cpp rotates neighbours, so its files hold the two halves of
        each head
        interleaved; only rows move, so it works on quantized blocks."""
        heads = self.config.num_heads if "q_proj" in name else self.config.num_kv_heads
        if rows.shape[0] != heads * self.config.head_dim:
            raise FileFormatError(
                f"{rows.shape[0]} rows cannot be {heads} heads of {self.config.head_dim}.", file=self.path, field=name
            )
        split = rows.reshape(heads, self.config.head_dim // 2, 2, rows.shape[1])
        return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(rows.shape)

    def _named(self) -> list[tuple[str, tuple[GgufTensor, int | None]]]:
        block_names = {**BLOCK, **OTHERWISE.get(self._architecture, {})}
        found: list[tuple[str, tuple[GgufTensor, int | None]]] = []
        for tensor in self.file.tensors.values():
            stem, _, kind = tensor.name.rpartition(".")
            if tensor.name in ROPE_TENSORS:
                continue
            if stem in OUTER:
                found.append((f"{OUTER[stem]}.{kind}", (tensor, None)))
                continue
            block, number, part = (*stem.split(".", 2), "", "")[:3]
            path = f"model.layers.{number}"
            if block == "blk" and part in block_names:
                found.append((f"{path}.{block_names[part]}.{kind}", (tensor, None)))
            elif block == "blk" and part == "ffn_gate_inp":
                found.append((f"{path}.block_sparse_moe.gate.{kind}", (tensor, None)))
            elif block == "blk" and part in EXPERTS and len(tensor.shape) == 3 and tensor.shape[0] < 4096:
                found += [
                    (f"{path}.block_sparse_moe.experts.{expert}.{EXPERTS[part]}.{kind}", (tensor, expert))
                    for expert in range(tensor.shape[0])
                ]
            else:
                raise FileFormatError(
                    f"The tensor is not part of the architecture {self._architecture!r}.",
                    file=self.path,
                    field=tensor.name,
                )
        return found

    # --- config -------------------------------------------------------------------------------------------------------

    def _value(self, key: str, default: Any = None) -> Any:
        return self._plain(f"{self._architecture}.{key}", default)

    def _plain(self, key: str, default: Any = None) -> Any:
        """A value that is no array: one number for every layer, as all files of these architectures have it."""
        value = self.file.metadata.get(key, default)
        if isinstance(value, list | np.ndarray):
            raise ConfigError("One value is expected, not an array.", file=self.path, field=key)
        return value

    def _hf_config(self) -> dict[str, Any]:
        """config.json as Hugging Face would write it; `parse_config` checks the values. What the file lacks is null,
        not left out: the defaults of Hugging Face's classes are not llama.cpp's.
        """
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise FileFormatError("The embedding is missing.", file=self.path, field="token_embd.weight")
        experts = self._value("expert_count", 0)
        values: dict[str, Any] = {
            "architectures": ["MixtralForCausalLM" if experts else ARCHITECTURES[self._architecture]],
            "_name_or_path": self._plain("general.basename"),
            "vocab_size": embedding.shape[0],
            "hidden_size": self._value("embedding_length"),
            "intermediate_size": self._value("feed_forward_length"),
            "num_hidden_layers": self._value("block_count"),
            "num_attention_heads": self._value("attention.head_count"),
            "num_key_value_heads": self._value("attention.head_count_kv"),
            "head_dim": self._value("attention.key_length"),
            "max_position_embeddings": self._value("context_length"),
            "tie_word_embeddings": "output.weight" not in self.file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in self.file.tensors,
            "use_bias": "blk.0.ffn_up.bias" in self.file.tensors,
            "sliding_window": self._value("attention.sliding_window", 4096 if self._architecture == "gemma2" else None),
            "bos_token_id": self._token("bos"),
            "eos_token_id": [token for name in ("eos", "eot", "eom") if (token := self._token(name)) is not None],
            **self._rope(),
        }
        for key in ("rms_norm_eps", "norm_epsilon"):
            name = "layer_norm_rms_epsilon" if key == "rms_norm_eps" else "layer_norm_epsilon"
            values[key] = self._value(f"attention.{name}")
        if experts:
            values |= {"num_local_experts": experts, "num_experts_per_tok": self._value("expert_used_count", 2)}
        if self._architecture.startswith("gemma"):
            values |= {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
        if self._architecture == "starcoder2":
            values["hidden_act"] = "gelu_pytorch_tanh"
        if self._architecture == "gemma2":
            values |= {
                "attn_logit_softcapping": self._value("attn_logit_softcapping", 50.0),
                "final_logit_softcapping": self._value("final_logit_softcapping", 30.0),
                "query_pre_attn_scalar": self._gemma2_scalar(),
            }
        if self._architecture == "gemma3":
            values["query_pre_attn_scalar"] = self._gemma3_scalar()
        return values

    def _gemma2_scalar(self) -> Any:
        """The file does not hold it: the 27B model divides by hidden size / heads, the others by the head's size."""
        if self._value("block_count") == 46:
            return self._hidden_per_head()
        return self._value("attention.key_length", 256)

    def _gemma3_scalar(self) -> Any:
        """As for Gemma 2, where again only the 27B model (62 layers) differs."""
        if self._value("block_count") == 62:
            return self._hidden_per_head()
        return self._value("attention.key_length", 256)

    def _hidden_per_head(self) -> int | None:
        """Hidden size / heads; None where the file does not hold them as numbers, which the config's check tells."""
        hidden, heads = self._value("embedding_length"), self._value("attention.head_count")
        return hidden // heads if type(hidden) is int and type(heads) is int and heads > 0 else None

    def _token(self, name: str) -> Any:
        return self._plain(f"tokenizer.ggml.{name}_token_id")

    def _rope(self) -> dict[str, Any]:
        theta = self._value("rope.freq_base", 10_000.0)
        parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        head = self._value("attention.key_length")
        if head is None:
            head = self._hidden_per_head()
        rotated = self._value("rope.dimension_count", head)
        if isinstance(head, int) and isinstance(rotated, int) and 0 < rotated < head:
            if self._architecture != "phi3":
                raise ConfigError(
                    f"{rotated} of {head} values of a head are rotated: {self._architecture} rotates all.",
                    file=self.path,
                    field=f"{self._architecture}.rope.dimension_count",
                )
            parameters["partial_rotary_factor"] = rotated / head
        context = self._value("context_length", 2048)
        kind = self._value("rope.scaling.type", "none")
        long = self._factors("rope_factors_long.weight")
        frequencies = self._factors("rope_freqs.weight")
        original = self._value("rope.scaling.original_context_length")
        if long is not None:
            short = self._factors("rope_factors_short.weight") or long
            parameters |= {
                "rope_type": "longrope",
                "short_factor": short,
                "long_factor": long,
                "original_max_position_embeddings": original or 4096,
                "attention_factor": self._value("rope.scaling.attn_factor"),
            }
        elif frequencies is not None:  # Llama 3's scaling, already worked out: a divisor for each frequency
            parameters |= {
                "rope_type": "longrope",
                "short_factor": frequencies,
                "long_factor": frequencies,
                "original_max_position_embeddings": context,
                "attention_factor": 1.0,
            }
        elif kind in ("linear", "yarn"):
            parameters |= {"rope_type": kind, "factor": self._value("rope.scaling.factor")}
            if original is not None:
                parameters["original_max_position_embeddings"] = original
        elif kind not in ("none", None):
            parameters["rope_type"] = kind  # refused by name where it is parsed
        parameters = {key: value for key, value in parameters.items() if value is not None}
        if self._architecture == "gemma3":
            local = {"rope_type": "default", "rope_theta": self._value("rope.local.freq_base", 10_000.0)}
            return {"rope_parameters": {"full_attention": parameters, "sliding_attention": local}}
        # beside the rope's parameters, where Phi-3's class has a number of its own for it
        outer = parameters.get("original_max_position_embeddings")
        return {"rope_parameters": parameters, "original_max_position_embeddings": outer}

    def _factors(self, name: str) -> list[float] | None:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            return None
        if tensor.type != "F32":
            raise FileFormatError(f"Numbers of type F32 are expected, not {tensor.type}.", file=self.path, field=name)
        if tensor.nbytes > MAX_ROPE_BYTES:
            raise FileFormatError(
                f"The tensor is {tensor.nbytes:,} bytes, our limit is {MAX_ROPE_BYTES:,}.", file=self.path, field=name
            )
        values: list[float] = self.file.raw(name).view(np.float32).tolist()
        return values
