"""Bases quantized by bitsandbytes, written by transformers, and what their bytes stand for, worked out by hand."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM

CONFIGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4-bfloat16-storage": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_quant_storage": "bfloat16",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "fp4-double": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
    "int8-skip": {"load_in_8bit": True, "llm_int8_skip_modules": ["v_proj", "lm_head"]},
    "nf4-head": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": []},
    "nf4-double-head": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_skip_modules": [],
    },
    "int8-head": {"load_in_8bit": True, "llm_int8_skip_modules": []},
}


def save_quantized(base: Path, folder: Path, name: str) -> LlamaForCausalLM:
    """The base, quantized and saved by transformers; also returned."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(**CONFIGS[name])
    model = LlamaForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()
    model.save_pretrained(folder)
    exact(model)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, folder / file)
    return model


def exact(module: torch.nn.Module) -> None:
    """Keep bitsandbytes from computing in bfloat16 on processors that have instructions for it."""
    for part in module.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False


def four_bit(packed: torch.Tensor, scales: torch.Tensor, table: torch.Tensor, block: int, shape: Any) -> torch.Tensor:
    """table[code] * scale of the block, codes two a byte, the first in the high half; blocks run on over rows."""
    data = packed.reshape(-1).view(torch.uint8)
    codes = torch.stack([data >> 4, data & 15], dim=1).reshape(-1).long()
    count = shape[0] * shape[1]
    return (table[codes[:count]] * scales.repeat_interleave(block)[:count]).reshape(*shape)


def rounded(matrix: torch.Tensor, kind: str) -> torch.Tensor:
    """A matrix as it stands after bitsandbytes quantized it where it lies, float32."""
    from bitsandbytes import functional

    if kind == "int8":
        values, scales, _ = functional.int8_vectorwise_quant(matrix.to(torch.float16))
        return values.float() * (scales / 127)[:, None]
    packed, state = functional.quantize_4bit(matrix, blocksize=64, quant_type=kind)
    return four_bit(packed, state.absmax, state.code, 64, matrix.shape)


def save_rounded(base: Path, folder: Path, kind: str, device: str = "cpu") -> Path:
    """The base as a plain float32 checkpoint, its linears as they stand after quantizing."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensors[name] = rounded(tensor.to(device), kind).cpu().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit(folder: Path, target: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy of a checkpoint with some tensors replaced, None: taken out."""
    shutil.copytree(folder, target)
    held = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor is None:
            del held[name]
        else:
            held[name] = tensor
    save_file(held, target / "model.safetensors", metadata={"format": "pt"})
    return target


def state_tensor(text: str) -> torch.Tensor:
    """JSON, or what claims to be, as it lies beside a 4-bit matrix."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def edit_state(folder: Path, name: str, **changes: Any) -> torch.Tensor:
    """The state of one matrix with some keys changed."""
    state = json.loads(bytes(load_file(folder / "model.safetensors")[name].tolist()))
    return state_tensor(json.dumps(state | changes))
