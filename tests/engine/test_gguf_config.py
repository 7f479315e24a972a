"""What a GGUF file's keys say of the model: followed as transformers follows its own configs, or refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from support import gguf_files, tiny
from support.precision import reference, whole_pass

from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import ConfigError, FileFormatError, LoradeskError
from loradesk_engine.formats.gguf import GgufTensor, read_gguf
from loradesk_engine.formats.gguf_config import SAME, WITHOUT_EFFECT
from loradesk_engine.formats.gguf_model import GgufModel
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.base import read_base
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.quantized import GgufWeights

IDS = torch.randint(0, 256, (80,), generator=torch.Generator().manual_seed(4))
SHORT, LONG = [1.0 + 0.1 * pair for pair in range(8)], [1.0 + pair for pair in range(8)]
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": SHORT, "long_factor": LONG}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
YARN_KEYS = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}


def gemma3(*, local: float = 1e4, every: int = 6, **whole: Any) -> dict[str, Any]:
    kinds = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(7)]
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": local},
        "full_attention": {"rope_type": "default", "rope_theta": 1e6, **whole},
    }
    return {**GEMMA, "rope_parameters": ropes, "layer_types": kinds}


@dataclass
class Case:
    """A model of transformers and what a file has besides to say the same."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, list[float]] = field(default_factory=dict)
    context: int | None = None
    architecture: str | None = None


def longrope(size: int) -> dict[str, list[float]]:
    return {"rope_factors_long.weight": LONG[:size], "rope_factors_short.weight": SHORT[:size]}


def phi3_keys(attention: float, rotated: int = 16) -> dict[str, Any]:
    return {"rope__scaling__attn_factor": attention, "rope__scaling__original_context_length": 64,
            "rope__dimension_count": rotated}  # fmt: skip


# sqrt(1 + ln(512 / 64) / ln(64)), as transformers works it out
STRETCHED = float((1 + np.log(8) / np.log(64)) ** 0.5)
PARTIAL = {**LONGROPE, "short_factor": SHORT[:6], "long_factor": LONG[:6], "partial_rotary_factor": 0.75}
FREQUENCIES = 1e4 ** -(np.arange(0, 16, 2) / 16)

CASES = {
    "linear": Case(
        "Llama", {"rope_parameters": LINEAR}, {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}),
    "linear, the type left out": Case("Llama", {"rope_parameters": LINEAR}, {"rope__scaling__factor": 4.0}),
    "linear, by its older name": Case("Llama", {"rope_parameters": LINEAR}, {"rope__scale_linear": 4.0}),
    "a factor that none makes void": Case("Llama", {}, {"rope__scaling__type": "none", "rope__scaling__factor": 4.0}),
    "linear without a factor": Case("Llama", {}, {"rope__scaling__type": "linear"}),
    "yarn": Case("Qwen2", {"rope_parameters": YARN}, YARN_KEYS),
    "yarn, llama": Case("Llama", {"rope_parameters": YARN}, YARN_KEYS),
    "yarn, other turns": Case(
        "Llama", {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}},
        {**YARN_KEYS, "rope__scaling__yarn_beta_fast": 16.0, "rope__scaling__yarn_beta_slow": 2.0}),
    "yarn, attention": Case(
        "Llama", {"rope_parameters": {**YARN, "attention_factor": 1.5}},
        {**YARN_KEYS, "rope__scaling__yarn_attn_factor": 1.5}),
    "yarn, attention in two parts": Case(
        "Llama", {"rope_parameters": {**YARN, "attention_factor": 1.5 * 0.5}},
        {**YARN_KEYS, "rope__scaling__yarn_attn_factor": 1.5, "rope__scaling__attn_factor": 0.5}),
    "yarn, attention on top of its own": Case(
        "Llama", {"rope_parameters": {**YARN, "attention_factor": (0.1 * float(np.log(4)) + 1) * 0.5}},
        {**YARN_KEYS, "rope__scaling__attn_factor": 0.5}),
    "llama3": Case("Llama", {"rope_parameters": LLAMA3}, {}, {"rope_freqs.weight": []}),
    "longrope, short": Case(
        "Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}, phi3_keys(STRETCHED),
        longrope(8), context=64),
    "longrope, long": Case(
        "Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}, phi3_keys(STRETCHED),
        longrope(8), context=200),
    "longrope of a part": Case(
        "Phi3", {"rope_parameters": PARTIAL, "original_max_position_embeddings": 64, "tie_word_embeddings": True},
        phi3_keys(STRETCHED, 12), longrope(6), context=200),
    "no window by a 0": Case("Phi3", {"sliding_window": None}, {"attention__sliding_window": 0}),
    "window": Case("Phi3", {"sliding_window": 8}),
    "a window of Mistral": Case("Mistral", {"sliding_window": 8, "head_dim": 16}, architecture="llama"),
    "biases": Case("Llama", {"attention_bias": True, "mlp_bias": True}),
    "biases of the MLP": Case("Llama", {"mlp_bias": True}),
    "biases of queries, keys and values": Case("Qwen2", {}, architecture="llama"),
    "biases, Qwen 3": Case("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "no biases": Case("Starcoder2", {"use_bias": False, "sliding_window": None}),
    "a base of the layers with a window": Case("Gemma3", gemma3(local=500.0), {"rope__freq_base_swa": 500.0}),
    "the same in Ollama's files": Case("Gemma3", gemma3(local=500.0), {"rope__local__freq_base": 500.0}),
    "every third layer": Case("Gemma3", gemma3(every=3), {"attention__sliding_window_pattern": 3}),
    "a flag for each layer": Case(
        "Gemma3", {**gemma3(), "layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]},
        {"attention__sliding_window_pattern": [True, False, True, False, True, False, True]}),
    "a cap": Case("Gemma3", {**gemma3(), "final_logit_softcapping": 5.0}, {"final_logit_softcapping": 5.0}),
    "no cap by a 0": Case("Gemma3", gemma3(), {"final_logit_softcapping": 0.0}),
    "stretched where all is seen": Case(
        "Gemma3", gemma3(rope_type="linear", factor=8.0),
        {"rope__scaling__type": "linear", "rope__scaling__factor": 8.0}),
    "a scale of its own": Case("Gemma3", {**gemma3(), "query_pre_attn_scalar": 64}, {"attention__scale": 0.125}),
    "Gemma 2's caps and windows": Case(
        "Gemma2", {**GEMMA, "num_hidden_layers": 3, "attn_logit_softcapping": 7.0, "final_logit_softcapping": 5.0},
        {"attn_logit_softcapping": 7.0, "final_logit_softcapping": 5.0, "attention__sliding_window_pattern": 2}),
}  # fmt: skip


def write(case: Case, path: Path) -> transformers.PreTrainedModel:
    """The case's file; transformers' model with its weights."""
    values = {**tiny.SMALL, "hidden_size": 64, "intermediate_size": 96, "pad_token_id": 0, "initializer_range": 0.1}
    config_name = {"Gemma3": "Gemma3Text"}.get(case.name, case.name)
    config = getattr(transformers, f"{config_name}Config")(**{**values, **case.config}, attn_implementation="eager")
    torch.manual_seed(1)
    model = getattr(transformers, f"{case.name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    tensors = {name: np.array(values) for name, values in case.tensors.items()}
    if "rope_freqs.weight" in tensors:  # worked out as llama.cpp's converter does it
        tensors["rope_freqs.weight"] = FREQUENCIES / model.model.rotary_emb.inv_freq.numpy()
    stands_for = gguf_files.write(model, path, case.architecture or case.name.lower(), tensors=tensors, **case.keys)
    model.load_state_dict(stands_for, strict=False)
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", CASES)
def test_keys_mean_what_transformers_configs_mean(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = write(case, tmp_path / "m.gguf")
    engine = EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), dtype="float32", context=case.context))
    ids = IDS[: case.context]
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(ids))
    with torch.inference_mode():
        batch = Batch(ids, torch.arange(len(ids)), (Segment(0, 0, len(ids), 0),), None)
        found = engine.decoder.logits(engine.decoder.forward(batch, cache), None)
    reference(model, whole_pass(ids)).assert_near(found)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    cases = {"llama": Case("Llama"), "qwen2": Case("Qwen2"), "gemma3": Case("Gemma3", gemma3()),
             "gemma2": Case("Gemma2", GEMMA), "phi3": Case("Phi3")}  # fmt: skip
    for name, case in cases.items():
        write(case, folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in cases}


def model_with(path: Path, **changes: Any) -> GgufModel:
    """The file's model with other metadata; keys without a dot are the architecture's, with __ for dots."""
    file = read_gguf(path)
    architecture = file.metadata["general.architecture"]
    more = {f"{architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    object.__setattr__(file, "metadata", MappingProxyType({**file.metadata, **more}))
    return GgufModel(file)


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_what_the_decoder_does_not_follow_is_refused_by_name(plain: dict[str, Path], key: str) -> None:
    allowed = list(WITHOUT_EFFECT[key])
    for value in (allowed[0], allowed[-1], np.array([allowed[0]] * 3)):
        model_with(plain["llama"], **{key.replace(".", "__"): value})
    other = not allowed[0] if isinstance(allowed[0], bool) else 3
    for value in (other, float("nan"), "text", np.array([allowed[0], other]), [[1]]):
        with pytest.raises(ConfigError, match="not supported") as caught:
            model_with(plain["llama"], **{key.replace(".", "__"): value})
        assert (caught.value.file, caught.value.field) == (str(plain["llama"]), f"llama.{key}")


@pytest.mark.parametrize("key", SAME)
def test_what_has_to_be_the_same_is_compared(plain: dict[str, Path], key: str) -> None:
    same = 64 if key == "embedding_length_out" else 16
    model_with(plain["llama"], **{key.replace(".", "__"): same})
    with pytest.raises(ConfigError) as caught:
        model_with(plain["llama"], **{key.replace(".", "__"): same // 2})
    assert caught.value.field == f"llama.{key}"


@pytest.mark.parametrize(
    ("architecture", "keys", "field"),
    [
        ("llama", {"attn_logit_softcapping": 5.0}, None),
        ("llama", {"final_logit_softcapping": 5.0}, None),
        ("gemma3", {"attn_logit_softcapping": 5.0}, None),
        ("qwen2", {"attention__sliding_window": 8}, None),
        ("qwen2", {"expert_count": 8}, None),
        ("llama", {"rope__freq_base_swa": 500.0}, None),
        ("gemma2", {"rope__freq_base_swa": 500.0}, None),
        *[("gemma3", {key: bad}, None) for key in ("rope__freq_base_swa", "rope__local__freq_base")
          for bad in (0.5, float("nan"), "x")],
        ("gemma2", {"attention__sliding_window_pattern": 3}, None),
        ("gemma3", {"attention__sliding_window_pattern": 0}, None),
        ("gemma3", {"attention__sliding_window_pattern": np.array([1, 0])}, None),
        ("phi3", {"attention__sliding_window_pattern": 2, "attention__sliding_window": 8}, None),
        ("llama", {"rope__scaling__attn_factor": 1.5}, None),
        ("llama", {"rope__scaling__attn_factor": "x", "rope__scaling__type": "yarn"}, "rope.scaling.attn_factor"),
        ("llama", {"rope__scaling__type": "dynamic ntk"}, None),
        ("llama", {"rope__scaling__factor": 0.5}, None),
        ("llama", {"rope__scaling__factor": float("nan")}, None),
        ("llama", {"attention__scale": float("inf")}, None),
        ("llama", {"attention__scale": -1.0}, None),
        ("llama", {"attention__scale": "x"}, None),
        ("llama", {"block_count": 0}, None),
        ("llama", {"attention__head_count_kv": 3}, None),
        ("llama", {"attention__layer_norm_rms_epsilon": float("nan")}, None),
    ],
)  # fmt: skip
def test_values_that_cannot_be_followed_are_refused(
    plain: dict[str, Path], architecture: str, keys: dict[str, Any], field: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        model_with(plain[architecture], **keys)
    assert caught.value.file == str(plain[architecture])
    assert caught.value.field == f"{architecture}.{field or next(iter(keys)).replace('__', '.')}"


def test_a_stretch_beside_divisors_is_refused(tmp_path: Path) -> None:
    write(Case("Llama", {}, {"rope__scaling__factor": 2.0}, {"rope_freqs.weight": []}), tmp_path / "m.gguf")
    with pytest.raises(ConfigError) as caught:
        read_base(tmp_path / "m.gguf")
    assert caught.value.field == "llama.rope.scaling.factor"


@pytest.mark.parametrize("tensor", ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"])
def test_divisors_of_another_number_are_refused_by_their_tensor(plain: dict[str, Path], tensor: str) -> None:
    file = read_gguf(plain["phi3"])
    start = file.tensors["token_embd.weight"].start
    size = {name: 3 if name == tensor else 8 for name in (tensor, "rope_factors_long.weight")}
    if tensor == "rope_freqs.weight":
        size = {tensor: 3}
    more = {name: GgufTensor(name, "F32", (count,), start, 4 * count) for name, count in size.items()}
    object.__setattr__(file, "tensors", MappingProxyType({**file.tensors, **more}))
    raw = np.ones(max(size.values()), np.float32).view(np.uint8)
    object.__setattr__(file, "raw", lambda name: raw[: 4 * size[name]])
    with pytest.raises(ConfigError) as caught:
        GgufModel(file)
    assert caught.value.field == tensor


@pytest.mark.parametrize("end", ["eos", "eot", "eom"])
def test_an_end_that_is_no_token_is_refused_by_its_key(plain: dict[str, Path], end: str) -> None:
    file = read_gguf(plain["llama"])
    key = f"tokenizer.ggml.{end}_token_id"
    object.__setattr__(file, "metadata", MappingProxyType({**file.metadata, key: -1}))
    with pytest.raises(ConfigError) as caught:
        GgufModel(file)
    assert caught.value.field == key


def test_a_stretch_by_its_older_name_is_refused_by_it(plain: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        model_with(plain["llama"], rope__scale_linear=0.5)
    assert caught.value.field == "llama.rope.scale_linear"


def test_a_context_that_longrope_cannot_count_from_is_refused(tmp_path: Path) -> None:
    keys = {"rope__scaling__original_context_length": 1}
    write(Case("Phi3", {}, keys, longrope(8)), tmp_path / "m.gguf")
    with pytest.raises(ConfigError) as caught:
        read_base(tmp_path / "m.gguf")
    assert caught.value.field == "phi3.rope.scaling.original_context_length"
    assert (caught.value.file, bool(caught.value.remedy)) == (str(tmp_path / "m.gguf"), True)


@pytest.mark.parametrize(
    ("name", "kind", "shape", "nbytes"),
    [
        ("blk.0.attn_q.bias", "Q8_0", (64,), 68),
        ("blk.0.attn_k.bias", "Q8_0", (32,), 34),
        ("blk.0.attn_q.bias", "F32", (), 4),
        ("blk.0.attn_k.bias", "F32", (1, 32), 128),
        ("blk.0.attn_q.bias", "I32", (64,), 256),
        ("output_norm.weight", "F64", (), 8),
        ("output_norm.weight", "I32", (), 4),
        ("blk.1.ffn_norm.weight", "F32", (), 4),
    ],
)
def test_tensors_of_no_use_in_their_place_are_refused(
    plain: dict[str, Path], name: str, kind: str, shape: tuple[int, ...], nbytes: int
) -> None:
    file = read_gguf(plain["llama"])
    start = file.tensors["token_embd.weight"].start
    tensors = {**file.tensors, name: GgufTensor(name, kind, shape, start, nbytes)}
    object.__setattr__(file, "tensors", MappingProxyType(tensors))
    with pytest.raises(FileFormatError) as caught:
        dict(GgufWeights(GgufModel(file)))
    assert (caught.value.file, caught.value.field) == (str(plain["llama"]), name)
    assert caught.value.remedy


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_merged_file_is_whole_and_a_part_is_not(plain: dict[str, Path], count: int) -> None:
    """llama-gguf-split --merge leaves split.count = 0."""
    file = read_gguf(plain["llama"])
    object.__setattr__(file, "metadata", MappingProxyType({**file.metadata, "split.count": count}))
    if count < 2:
        assert GgufModel(file).config.num_layers == 2
        return
    with pytest.raises(ConfigError) as caught:
        GgufModel(file)
    assert caught.value.field == "split.count"


# --- stacks of experts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [{}, {"expert_count": 8}, {"expert_count": 4095}, {"expert_count": 1024}])
@pytest.mark.parametrize("block", ["0", "1", "31", "00", "x", "-1", "٣", "9" * 600])
def test_stacks_are_not_unfolded_before_they_are_checked(tmp_path: Path, keys: dict[str, int], block: str) -> None:
    """A matrix of 4,095 experts is 16 KiB and would be 4,095 names."""
    import gguf

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {"block_count": 1, "embedding_length": 1, "feed_forward_length": 1, "attention.head_count": 1,
               "attention.key_length": 2, "context_length": 64, **keys}  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((8, 1), np.float32))
    writer.add_tensor(f"blk.{block}.ffn_gate_exps.weight", np.zeros((4095, 1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(LoradeskError) as caught:
        read_base(path)
    assert caught.value.file == str(path)
    assert isinstance(caught.value, ConfigError | FileFormatError)
    if keys == {"expert_count": 4095}:
        assert caught.value.field == "llama.expert_count"
    else:
        assert caught.value.field == LoradeskError("", field=f"blk.{block}.ffn_gate_exps.weight").field
