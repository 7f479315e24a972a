"""A model in a GGUF file: its tensors under Hugging Face's names and in its layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loradesk_engine.architectures.architecture import Names
from loradesk_engine.errors import FileFormatError
from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.formats.gguf import GgufFile, GgufTensor
from loradesk_engine.formats.gguf_config import read_gguf_config
from loradesk_engine.formats.gguf_keys import Keys
from loradesk_engine.formats.gguf_rope import ROPE_TENSORS
from loradesk_engine.formats.stored import StoredTensor

PLAIN = ("F32", "F16", "BF16")
"""Types of which a row can be cut anywhere."""


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
        hf_config: what the ordering file's check reads in a config.json.
        names: Hugging Face's names of the tensors.

    Raises:
        ConfigError, FileFormatError: the architecture is not supported, or a key or tensor is missing or malformed.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.path = file.path
        keys = Keys(file)
        self._architecture = keys.architecture
        self.config = read_gguf_config(keys)
        gguf = self.config.family.gguf
        self._permuted = gguf is not None and gguf.permuted
        self.hf_config = _hf_config(keys, self.config)
        self._places = dict(self._named())

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
        if self._permuted and name.endswith(("q_proj.weight", "k_proj.weight")):
            matrix = self._unpermuted(matrix, name)
        elif self._permuted and name.endswith(("q_proj.bias", "k_proj.bias")):
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

    def _named(self) -> Iterator[tuple[str, tuple[GgufTensor, int | None]]]:
        """Hugging Face's names with the tensors, and the number of the expert in a stack of them."""
        names = self.config.family.names
        outer = {"token_embd": "model.embed_tokens", "output_norm": names.final_norm, "output": "lm_head"}
        block_names, stacks = _block_names(names), _stacks(names)
        for tensor in self.file.tensors.values():
            if tensor.name in ROPE_TENSORS:
                continue
            stem, _, kind = tensor.name.rpartition(".")
            block, number, part = (*stem.split(".", 2), "", "")[:3]
            if not tensor.shape:
                raise self._malformed(tensor, "The tensor has no dimensions.")
            reordered = self._permuted and part in ("attn_q", "attn_k") and kind == "bias"
            if reordered and (tensor.type not in PLAIN or len(tensor.shape) != 1):
                problem = f"A vector of {', '.join(PLAIN)} is expected, not {tensor.type} {list(tensor.shape)}."
                raise self._malformed(tensor, problem)
            if stem in outer:
                yield f"{outer[stem]}.{kind}", (tensor, None)
                continue
            if block != "blk" or not self._is_layer(number):
                raise self._not_part(tensor)
            path = f"model.layers.{number}"
            if part in block_names:
                yield f"{path}.{block_names[part]}.{kind}", (tensor, None)
            elif names.experts and part in stacks and len(tensor.shape) == 3 and tensor.shape[0] == self.config.experts:
                for expert in range(self.config.experts):
                    yield f"{path}.{names.experts.path(expert, stacks[part])}.{kind}", (tensor, expert)
            else:
                raise self._not_part(tensor)

    def _is_layer(self, number: str) -> bool:
        return (
            number.isascii()
            and number.isdecimal()
            and number == str(int(number))
            and (int(number) < self.config.num_layers)
        )

    def _not_part(self, tensor: GgufTensor) -> FileFormatError:
        layers, experts = self.config.num_layers, self.config.experts
        size = f"{layers} layers and {experts} experts" if experts else f"{layers} layers"
        return self._malformed(
            tensor, f"The tensor is not part of the architecture {self._architecture!r} with {size}."
        )

    def _malformed(self, tensor: GgufTensor, problem: str) -> FileFormatError:
        return FileFormatError(problem, file=self.path, field=tensor.name, remedy="Download or copy the file again.")


def _block_names(names: Names) -> dict[str, str]:
    """llama.cpp's names of the tensors of a layer -> the family's."""
    qkv = ("attn_q", "attn_k", "attn_v") if len(names.qkv) > 1 else ("attn_qkv",)
    pairs: list[tuple[str, str | None]] = [
        ("attn_norm", names.input_norm),
        *zip(qkv, names.qkv, strict=True),
        ("attn_q_norm", names.q_norm),
        ("attn_k_norm", names.k_norm),
        ("attn_output", names.attention_out),
        ("post_attention_norm", names.attention_norm),
        ("ffn_norm", names.mlp_norm),
        ("post_ffw_norm", names.out_norm),
    ]
    if names.experts is None:
        mlp = ("ffn_gate", "ffn_up") if len(names.mlp_in) > 1 else ("ffn_up",)
        pairs += [*zip(mlp, names.mlp_in, strict=True), ("ffn_down", names.mlp_out)]
    else:
        pairs.append(("ffn_gate_inp", names.experts.router))
    return {theirs: ours for theirs, ours in pairs if ours is not None}


def _stacks(names: Names) -> dict[str, str]:
    """llama.cpp's names of the tensors that hold a linear of all experts of a layer -> the linear's name."""
    if names.experts is None:
        return {}
    return {
        "ffn_gate_exps": names.experts.gate,
        "ffn_up_exps": names.experts.up,
        "ffn_down_exps": names.experts.down,
    }


def _hf_config(keys: Keys, config: ModelConfig) -> dict[str, Any]:
    """The keys of a config.json that the ordering file's check reads."""
    values: dict[str, Any] = {"architectures": [config.architecture], "num_hidden_layers": config.num_layers}
    if config.experts:
        values["num_local_experts"] = config.experts
    name = keys.plain("general.basename")
    return values if name is None else {**values, "_name_or_path": name}
