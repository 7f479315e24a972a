"""Tiny models, adapters and X-LoRA checkpoints, made with transformers and PEFT: the oracles' own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, XLoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = 256 + len(SPECIAL)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,  # whole blocks of every GGUF type with 32 values
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 256,
    "initializer_range": 0.3,  # far from uniform logits, so that differences show
}


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer: id = byte, and the special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = sorted(alphabet, key=decoders_byte)
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(order)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": TEMPLATE, "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def decoders_byte(letter: str) -> int:
    """The byte that a letter of the byte-level alphabet stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if ord(letter) in printable:
        return ord(letter)
    others = [byte for byte in range(256) if byte not in printable]
    return others[ord(letter) - 256]


def make_llama(folder: Path, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama, saved with a tokenizer; also returned, in float32 and eval mode."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).eval()
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def make_lora(base: Path, folder: Path, seed: int, **options: Any) -> None:
    """A LoRA adapter with random A and B, saved by PEFT."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options}
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)


def load(base: Path) -> PreTrainedModel:
    """The base as transformers loads it; its fused attention has no soft caps."""
    capped = getattr(AutoConfig.from_pretrained(base), "attn_logit_softcapping", None) is not None
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager" if capped else "sdpa"
    ).eval()
    model.config.use_cache = False
    return model


def peft_with(base: Path, adapters: dict[str, Path]) -> PeftModel:
    """The base with several adapters loaded by PEFT, all active."""
    names = list(adapters)
    model = PeftModel.from_pretrained(load(base), adapters[names[0]], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(adapters[name], adapter_name=name)
    model.base_model.set_adapter(names)
    return model.eval()


def make_xlora(
    base: Path, folder: Path, adapters: list[Path], seed: int = 7, std: float = 0.5, **options: Any
) -> PeftModel:
    """An X-LoRA in PEFT's format over adapters named "0", "1", ...; the PEFT model is returned."""
    torch.manual_seed(seed)
    config = XLoraConfig(
        task_type="CAUSAL_LM",
        hidden_size=load(base).config.hidden_size,
        adapters={str(number): str(path) for number, path in enumerate(adapters)},
        **options,
    )
    model = get_peft_model(load(base), config).eval()
    for parameter in model.base_model.internal_xlora_classifier.parameters():
        torch.nn.init.normal_(parameter, std=std)  # scalings far from uniform
    model.save_pretrained(folder)
    # PEFT 0.21 takes "layers.0" for a part of the adapter "0" and leaves it out of the file: write the whole
    # classifier.
    state = {
        name: value.contiguous() for name, value in model.state_dict().items() if "internal_xlora_classifier" in name
    }
    save_file(state, folder / "adapter_model.safetensors")
    return model


def to_xlora_form(peft_folder: Path, folder: Path, adapters: dict[str, Path], *, relu: bool = True) -> None:
    """The same checkpoint as xlora and mistral.rs save it: classifier with `inner` and `last`, adapters in
    sub-folders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = json.loads((peft_folder / "adapter_config.json").read_text(encoding="utf-8"))
    keep = (
        "hidden_size", "layerwise_scalings", "xlora_depth", "xlora_size", "enable_softmax", "softmax_temperature",
        "scaling_pass_value", "global_scaling_weight", "top_k_lora", "enable_softmax_topk",
    )  # fmt: skip
    config = {key: values[key] for key in keep} | {
        "use_bias": True,
        "enable_relu_and_dropout": relu,
        "use_trainable_adapters": False,
    }
    (folder / "xlora_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = load_file(peft_folder / "adapter_model.safetensors")
    numbers = sorted({int(name.rsplit(".", 2)[1]) for name in tensors})
    renamed = {}
    for name, tensor in tensors.items():
        number, kind = name.rsplit(".", 2)[1:]
        stem = "last" if int(number) == numbers[-1] else f"inner.{number}"
        renamed[f"{stem}.{kind}"] = tensor.contiguous()
    save_file(renamed, folder / "xlora_classifier.safetensors")
    for name, path in adapters.items():
        target = folder / name
        target.mkdir(exist_ok=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (target / file).write_bytes((path / file).read_bytes())


def write_ordering(path: Path, **values: Any) -> Path:
    """An ordering file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return path
