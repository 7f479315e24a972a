"""The base of a pack as GGUF Q8_0, with its tokenizer and chat template. `python -m training.demo.export_gguf FOLDER`

Needs the `gguf` package. Tensors carry llama.cpp's names; the rows of q and k are permuted as llama.cpp's rope wants
them.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from .model import Decoder
from .pack import read_model, read_tokenizer
from .text import BOS, CHAT_TEMPLATE, END, PAD, SPECIAL
from .tokenizer import PRE_TOKENIZER

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
FILE_NAME = "base-q8_0.gguf"


def gguf_name(name: str) -> str:
    """model.layers.0.self_attn.q_proj.weight -> blk.0.attn_q.weight"""
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in top:
        return top[name]
    _, _, layer, *path, _ = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(path)]}.weight"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows from two halves a head (Hugging Face) to neighbouring pairs (llama.cpp)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write(folder: Path) -> Path:
    config = json.loads((folder / "base" / "config.json").read_text("utf-8"))
    vocabulary = json.loads((folder / "base" / "tokenizer.json").read_text("utf-8"))["model"]
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    path = folder / FILE_NAME
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Loradesk demo")
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    ids = vocabulary["vocab"]
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in vocabulary["merges"]])
    writer.add_bos_token_id(ids[BOS])
    writer.add_eos_token_id(ids[END])
    writer.add_pad_token_id(ids[PAD])
    writer.add_add_bos_token(False)  # the chat template writes it
    writer.add_chat_template(CHAT_TEMPLATE)

    for name, tensor in load_file(folder / "base" / "model.safetensors").items():
        weight = tensor.to(torch.float32).numpy()
        for part, count in heads.items():
            if f".{part}." in name:
                weight = permute(weight, count)
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def read(folder: Path) -> Decoder:
    """The model with the weights of the GGUF file, dequantized."""
    model = read_model(folder, torch.device("cpu"))
    stored = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(folder / FILE_NAME).tensors
    }
    shape = model.shape
    heads = {"self_attn.q_proj": shape.heads, "self_attn.k_proj": shape.kv_heads}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                continue
            weight = stored[gguf_name(f"model.{name}")]
            for part, count in heads.items():
                if f".{part}." in name:
                    weight = unpermute(weight, count)
            parameter.copy_(torch.from_numpy(np.array(weight)).view_as(parameter))
    return model


def compare(folder: Path) -> dict:
    """Greedy answers of both files to fifty prompts: small talk with the base, tasks with their adapters."""
    from random import Random

    from .evaluate import OPENERS, Pack, ask_for
    from .smalltalk import exchange
    from .tasks import SKILLS

    tokenizer = read_tokenizer(folder)
    rng = Random(11)
    prompts = [("base", text) for text in OPENERS]
    while len(prompts) < 20:
        said = exchange(rng)[0][0]
        if said not in (text for _, text in prompts):
            prompts.append(("base", said))
    for skill in SKILLS:
        draws = {skill.held_out(rng).question for _ in range(40)}
        prompts += [(skill.name, question) for question in sorted(draws)[:: max(1, len(draws) // 8)][:8]]
    prompts = prompts[:50]
    dense = Pack(read_model(folder, torch.device("cpu")), None, tokenizer)
    quantized = Pack(read(folder), None, tokenizer)
    differing = []
    for mode in dict.fromkeys(mode for mode, _ in prompts):
        questions = [text for m, text in prompts if m == mode]
        texts = [ask_for(q) for q in questions]
        for q, a, b in zip(questions, dense.answer(texts, mode, 48), quantized.answer(texts, mode, 48), strict=True):
            if a != b:
                differing.append({"adapter": mode, "prompt": q, "safetensors": a, "gguf": b})
    return {"prompts": len(prompts), "tokens": 48, "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    path = write(folder)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    results_path = folder / "results.json"
    results = json.loads(results_path.read_text("utf-8"))
    results["gguf"] = compare(folder)
    print(f"{len(results['gguf']['differing'])} of {results['gguf']['prompts']} answers differ")
    from .evaluate import write as write_results

    write_results(folder, results)


if __name__ == "__main__":
    main()
