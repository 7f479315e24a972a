"""The files of the pack: written here, and read back for measuring."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from . import tokenizer as tokenizer_module
from .model import AdapterShape, Classifier, Decoder, Shape
from .tasks import EXPERTS
from .text import BOS, END, PAD
from .xlora import DROPOUT, SIZE, TEMPERATURE

BASE_ID = "loradesk/demo"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BASE_DTYPE = torch.bfloat16
ADAPTER_DTYPE = torch.float16


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    (folder / "base").mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "base" / "tokenizer.json"))
    write_json(folder / "base" / "tokenizer_config.json", tokenizer_module.config())


def write_base(folder: Path, model: Decoder, tokenizer: Tokenizer) -> None:
    s = model.shape
    bos, end, pad = (tokenizer.token_to_id(t) for t in (BOS, END, PAD))
    write_tokenizer(folder, tokenizer)
    write_json(
        folder / "base" / "config.json",
        {
            "_name_or_path": BASE_ID,
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": s.vocabulary,
            "hidden_size": s.hidden,
            "intermediate_size": s.intermediate,
            "num_hidden_layers": s.layers,
            "num_attention_heads": s.heads,
            "num_key_value_heads": s.kv_heads,
            "head_dim": s.head_size,
            "hidden_act": "silu",
            "max_position_embeddings": s.context,
            "rms_norm_eps": s.norm_eps,
            "rope_theta": s.rope_theta,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "bos_token_id": bos,
            "eos_token_id": end,
            "pad_token_id": pad,
        },
    )
    write_json(
        folder / "base" / "generation_config.json",
        {
            "bos_token_id": bos,
            "eos_token_id": end,
            "pad_token_id": pad,
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 40,
            "top_p": 0.95,
        },
    )
    tensors = {
        f"model.{name}": parameter.detach().to(BASE_DTYPE).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if ".lora_" not in name
    }
    save_file(tensors, folder / "base" / "model.safetensors", {"format": "pt"})


def write_adapters(folder: Path, model: Decoder) -> None:
    first = 0
    for shape in model.adapters:
        tensors = {}
        part = slice(first, first + shape.rank)
        for path, linear in model.linears().items():
            tensors[f"base_model.model.{path}.lora_A.weight"] = (
                linear.lora_A[part].detach().to(ADAPTER_DTYPE).cpu().contiguous()
            )
            tensors[f"base_model.model.{path}.lora_B.weight"] = (
                linear.lora_B[:, part].detach().to(ADAPTER_DTYPE).cpu().contiguous()
            )
        first += shape.rank
        target = folder / "adapters" / shape.name
        write_json(
            target / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": BASE_ID,
                "r": shape.rank,
                "lora_alpha": shape.alpha,
                "lora_dropout": 0.0,
                "target_modules": TARGETS,
                "bias": "none",
                "fan_in_fan_out": False,
                "use_rslora": False,
                "use_dora": False,
                "modules_to_save": None,
                "inference_mode": True,
            },
        )
        save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})


def write_classifier(folder: Path, model: Decoder, classifier: Classifier) -> None:
    write_json(
        folder / "xlora" / "xlora_config.json",
        {
            "base_model_id": BASE_ID,
            "hidden_size": model.shape.hidden,
            "adapters": {name: f"../adapters/{name}" for name in EXPERTS},
            "layerwise_scalings": True,
            "xlora_depth": 2,
            "xlora_size": SIZE,
            "enable_relu_and_dropout": True,
            "xlora_dropout_p": DROPOUT,
            "use_bias": True,
            "enable_softmax": True,
            "softmax_temperature": TEMPERATURE,
            "scaling_pass_value": 0,
            "global_scaling_weight": 1.0,
            "top_k_lora": None,
            "enable_softmax_topk": False,
            "use_trainable_adapters": False,
        },
    )
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in classifier.state_dict().items()}
    save_file(tensors, folder / "xlora" / "xlora_classifier.safetensors", {"format": "pt"})


def write_orderings(folder: Path, model: Decoder) -> None:
    layers = {path: i for i, path in enumerate(model.linears())}
    preload = [{"name": name, "adapter_model_id": f"../adapters/{name}"} for name in EXPERTS]
    # No adapter is active at first: the conversation begins with the base, and each switch shows something.
    write_json(
        folder / "ordering" / "lora.json",
        {"base_model_id": BASE_ID, "order": [], "layers": layers, "preload_adapters": preload},
    )
    write_json(folder / "ordering" / "xlora.json", {"base_model_id": BASE_ID, "order": list(EXPERTS), "layers": layers})


def read_tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))


def read_model(folder: Path, device: torch.device, adapters: bool = True) -> Decoder:
    """The base, with its adapters, from the files."""
    c = json.loads((folder / "base" / "config.json").read_text("utf-8"))
    shape = Shape(
        c["vocab_size"],
        c["hidden_size"],
        c["num_hidden_layers"],
        c["num_attention_heads"],
        c["num_key_value_heads"],
        c["intermediate_size"],
        c["max_position_embeddings"],
        c["rope_theta"],
        c["rms_norm_eps"],
    )
    model = Decoder(shape)
    weights = load_file(folder / "base" / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    if adapters:
        read_adapters(folder, model)
    return model.to(device).eval().requires_grad_(False)


def read_adapters(folder: Path, model: Decoder) -> None:
    shapes, files = [], []
    for name in EXPERTS:
        c = json.loads((folder / "adapters" / name / "adapter_config.json").read_text("utf-8"))
        shapes.append(AdapterShape(name, c["r"], c["lora_alpha"]))
        files.append(load_file(folder / "adapters" / name / "adapter_model.safetensors"))
    model.add_adapters(tuple(shapes))
    with torch.no_grad():
        for path, linear in model.linears().items():
            linear.lora_A.copy_(torch.cat([f[f"base_model.model.{path}.lora_A.weight"].float() for f in files], dim=0))
            linear.lora_B.copy_(torch.cat([f[f"base_model.model.{path}.lora_B.weight"].float() for f in files], dim=1))


def read_classifier(folder: Path, device: torch.device) -> Classifier:
    c = json.loads((folder / "xlora" / "xlora_config.json").read_text("utf-8"))
    weights = load_file(folder / "xlora" / "xlora_classifier.safetensors")
    adapters = len(c["adapters"])
    layers = len(weights["last.bias"]) // adapters
    classifier = Classifier(
        c["hidden_size"], layers, adapters, c["xlora_size"], c["xlora_dropout_p"], c["softmax_temperature"]
    )
    classifier.load_state_dict(weights)
    return classifier.to(device).eval().requires_grad_(False)
