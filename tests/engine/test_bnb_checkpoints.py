"""bitsandbytes checkpoints as transformers saves them: they load as saved, and bad ones are refused by name."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from safetensors.torch import load_file, save_file
from support import bnb, tiny
from support.precision import Reference, exact, whole_pass
from transformers import LlamaForCausalLM

from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import CheckpointError, ConfigError
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.base import read_base
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.bnb import EightBitLinear
from loradesk_engine.model.linear import DenseLinear
from loradesk_engine.model.native.library import library

IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(3))
PATH = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    tiny.make_llama(folder, hidden_size=64, intermediate_size=128, attention_bias=True)
    return folder


@pytest.fixture(scope="module")
def saved(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, LlamaForCausalLM]]:
    """A quantized checkpoint by its name in `bnb.CONFIGS`, and the model that saved it; each made once."""
    made: dict[str, tuple[Path, LlamaForCausalLM]] = {}

    def save(name: str) -> tuple[Path, LlamaForCausalLM]:
        if name not in made:
            folder = tmp_path_factory.mktemp("saved") / name
            made[name] = (folder, bnb.save_quantized(plain, folder, name))
        return made[name]

    return save


@pytest.fixture(autouse=True)
def inference() -> object:
    with torch.inference_mode():
        yield


def load(folder: Path) -> EngineCore:
    return EngineCore.load(LoadSettings(base=str(folder), dtype="float32", device="cpu"))


def logits_of(engine: EngineCore) -> torch.Tensor:
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(IDS))
    batch = Batch(IDS, torch.arange(len(IDS)), (Segment(0, 0, len(IDS), 0),), None)
    return engine.decoder.logits(engine.decoder.forward(batch, cache))


def stands_for(plain: Path, model: LlamaForCausalLM) -> Reference:
    """The logits of a quantized model, against its weights as bitsandbytes dequantizes them, in float64."""
    whole = tiny.load(plain)
    for path, linear in model.named_modules():
        if isinstance(linear, Linear4bit):
            weight = dequantize_4bit(linear.weight.data, linear.weight.quant_state)
        elif isinstance(linear, Linear8bitLt):
            weight = linear.weight.data.float() * (linear.weight.SCB / 127)[:, None]
        else:
            continue
        whole.get_submodule(path).weight.data = weight.float()
    return Reference(exact(whole, whole_pass(IDS)), whole_pass(IDS)(model))


@pytest.mark.parametrize("name", [name for name in bnb.CONFIGS if name != "nf4-bfloat16-storage"])
def test_a_saved_checkpoint_equals_transformers(saved, plain: Path, name: str) -> None:  # type: ignore[no-untyped-def]
    folder, model = saved(name)
    engine = load(folder)
    stands_for(plain, model).assert_near(logits_of(engine))
    source = read_base(folder)
    assert (source.quantized, source.bits) == ("bnb", 8 if "int8" in name else 4)
    assert source.parameters == read_base(plain).parameters == engine.info.parameters
    assert engine.info.weight_bytes < 0.7 * load(plain).info.weight_bytes
    # the compiled kernels know 4 bits
    slow = "int8" in name or library() is None
    assert any("slow on the CPU" in warning for warning in engine.info.warnings) == slow


def test_any_type_of_storage_holds_the_same_weights(saved, plain: Path) -> None:  # type: ignore[no-untyped-def]
    (bytes_folder, model), (other_folder, _) = saved("nf4"), saved("nf4-bfloat16-storage")
    ours = logits_of(load(other_folder))
    # on the CPU products are computed in the model's type, whatever the checkpoint's compute type
    assert torch.equal(ours, logits_of(load(bytes_folder)))
    stands_for(plain, model).assert_near(ours)


def test_which_linears_are_quantized_is_said_by_the_tensors(saved) -> None:  # type: ignore[no-untyped-def]
    def kinds(name: str) -> dict[str, type]:
        return {linear.path.rpartition(".")[2]: type(linear) for linear in load(saved(name)[0]).decoder.linears}

    assert kinds("nf4")["lm_head"] is DenseLinear
    quantized = {linear.path.rpartition(".")[2] for linear in load(saved("nf4")[0]).decoder.linears if not linear.dtype}
    assert quantized == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds("int8-skip")["v_proj"] is DenseLinear
    assert kinds("int8-skip")["q_proj"] is EightBitLinear
    assert set(kinds("int8-head").values()) == {EightBitLinear}


def test_the_threshold_is_the_checkpoints(saved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "m"
    shutil.copytree(saved("int8")[0], folder)
    edit_config(folder, llm_int8_threshold=2.5)
    linear = load(folder).decoder.linears[0]
    assert isinstance(linear, EightBitLinear)
    assert linear.threshold == 2.5


def test_the_first_checkpoints_do_not_say_their_method(saved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, copy = saved("int8")[0], tmp_path / "m"
    shutil.copytree(folder, copy)
    values = json.loads((copy / "config.json").read_text())
    values["quantization_config"] = {"load_in_8bit": True}
    (copy / "config.json").write_text(json.dumps(values))
    tensors = load_file(copy / "model.safetensors")
    for name in [name for name in tensors if name.endswith(".weight_format")]:
        del tensors[name]
    save_file(tensors, copy / "model.safetensors")
    assert torch.equal(logits_of(load(copy)), logits_of(load(folder)))


# --- refusals ---------------------------------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] = values.get("quantization_config", {}) | changes
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        ({"quant_method": "gptq"}, "quant_method", "gptq"),
        ({"quant_method": "awq"}, "quant_method", "awq"),
        ({"quant_method": ["bitsandbytes"]}, "quant_method", "bitsandbytes"),
        ({"load_in_8bit": True}, "load_in_4bit", "Either"),
        ({"load_in_4bit": False}, "load_in_4bit", "Either"),
        ({"load_in_4bit": "yes"}, "load_in_4bit", "string"),
        ({"bnb_4bit_quant_type": "nf3"}, "bnb_4bit_quant_type", "nf3"),
        ({"bnb_4bit_quant_type": ["nf4"]}, "bnb_4bit_quant_type", "nf4"),
        ({"bnb_4bit_quant_type": "int8"}, "bnb_4bit_quant_type", "int8"),
        ({"bnb_4bit_compute_dtype": "float8"}, "bnb_4bit_compute_dtype", "float8"),
        ({"llm_int8_threshold": -1}, "llm_int8_threshold", "-1"),
        ({"llm_int8_threshold": True}, "llm_int8_threshold", "True"),
        ({"llm_int8_has_fp16_weight": True}, "llm_int8_has_fp16_weight", "16 bits"),
    ],
)
def test_a_configuration_is_refused_by_name(saved, tmp_path: Path, changes: dict, field: str, word: str) -> None:  # type: ignore[no-untyped-def, type-arg]
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(saved("nf4")[0] / "config.json", folder)
    edit_config(folder, **changes)
    with pytest.raises(ConfigError, match=word) as caught:
        read_base(folder)
    assert caught.value.file == str(folder / "config.json")
    assert caught.value.field == f"quantization_config.{field}"


def test_a_plain_checkpoint_that_says_it_is_quantized(saved, plain: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "m"
    shutil.copytree(plain, folder)
    shutil.copy(saved("nf4")[0] / "config.json", folder)
    with pytest.raises(CheckpointError, match="none of them is"):
        read_base(folder)


def test_a_quantized_checkpoint_that_does_not_say_so(saved, plain: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "m"
    shutil.copytree(saved("nf4")[0], folder)
    shutil.copy(plain / "config.json", folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert (caught.value.field or "").endswith("q_proj.weight")


W = f"{PATH}.weight"
NF4, FP4 = f"{W}.quant_state.bitsandbytes__nf4", f"{W}.quant_state.bitsandbytes__fp4"
ZEROS = torch.zeros


def uint8(*shape: int) -> torch.Tensor:
    return ZEROS(*shape, dtype=torch.uint8)


TENSORS: list[tuple[str, str, dict[str, torch.Tensor | None], str]] = [
    ("packed too short", "nf4", {W: uint8(4095, 1)}, W),
    ("packed too long", "nf4", {W: uint8(4097, 1)}, W),
    ("packed of int64", "nf4", {W: ZEROS(4096, dtype=torch.int64)}, W),
    ("packed missing", "nf4", {W: None}, W),
    ("scales too few", "nf4", {f"{W}.absmax": ZEROS(127)}, f"{W}.absmax"),
    ("scales of another type", "nf4", {f"{W}.absmax": uint8(128)}, f"{W}.absmax"),
    ("scales in another order", "nf4", {f"{W}.absmax": ZEROS(1, 128)}, f"{W}.absmax"),
    (
        "scales as bitsandbytes rearranges them on a CPU",
        "nf4",
        {f"{W}.absmax": ZEROS(1, 128, dtype=torch.bfloat16)},
        f"{W}.absmax",
    ),
    ("scales missing", "nf4", {f"{W}.absmax": None}, f"{W}.absmax"),
    ("table too short", "nf4", {f"{W}.quant_map": ZEROS(15)}, f"{W}.quant_map"),
    ("table of something else", "nf4", {f"{W}.quant_map": ZEROS(16)}, f"{W}.quant_map"),
    ("table not a number", "nf4", {f"{W}.quant_map": torch.full((16,), float("nan"))}, f"{W}.quant_map"),
    ("nested table too short", "nf4-double", {f"{W}.nested_quant_map": ZEROS(255)}, f"{W}.nested_quant_map"),
    ("nested scales too few", "nf4-double", {f"{W}.nested_absmax": ZEROS(0)}, f"{W}.nested_absmax"),
    ("nested scales missing", "nf4-double", {f"{W}.nested_absmax": None}, f"{W}.nested_absmax"),
    ("nested codes as floats", "nf4-double", {f"{W}.absmax": ZEROS(128)}, f"{W}.absmax"),
    ("nested tensors that the state does not know", "nf4", {f"{W}.nested_absmax": ZEROS(1)}, f"{W}.nested_absmax"),
    ("two states", "nf4", {FP4: bnb.state_tensor("{}")}, NF4),
    ("state of another type", "nf4", {NF4: ZEROS(80)}, NF4),
    ("state empty", "nf4", {NF4: uint8(0)}, NF4),
    ("state too long", "nf4", {NF4: uint8(4097)}, NF4),
    ("state no JSON", "nf4", {NF4: bnb.state_tensor('{"quant_type": ')}, NF4),
    ("state no text", "nf4", {NF4: torch.full((80,), 255, dtype=torch.uint8)}, NF4),
    ("state deep", "nf4", {NF4: bnb.state_tensor("[" * 4096)}, NF4),
    ("state a list", "nf4", {NF4: bnb.state_tensor("[]")}, NF4),
    ("state without keys", "nf4", {NF4: bnb.state_tensor("{}")}, NF4),
    ("values missing", "int8", {W: None}, W),
    ("values of another shape", "int8", {W: ZEROS(64, 128, dtype=torch.int8)}, W),
    ("values as floats", "int8", {W: ZEROS(128, 64)}, W),
    ("rows' scales too few", "int8", {f"{PATH}.SCB": ZEROS(127)}, f"{PATH}.SCB"),
    ("rows' scales of another type", "int8", {f"{PATH}.SCB": ZEROS(128, dtype=torch.float16)}, f"{PATH}.SCB"),
    ("rows' scales missing", "int8", {f"{PATH}.SCB": None}, W),
    ("another order", "int8", {f"{PATH}.weight_format": torch.tensor(2, dtype=torch.uint8)}, f"{PATH}.weight_format"),
    ("order of several", "int8", {f"{PATH}.weight_format": uint8(2)}, f"{PATH}.weight_format"),
]


@pytest.mark.parametrize(("name", "tensors", "field"), [pytest.param(*case[1:], id=case[0]) for case in TENSORS])
def test_tensors_that_do_not_make_a_matrix(
    saved, tmp_path: Path, name: str, tensors: dict[str, torch.Tensor | None], field: str
) -> None:  # type: ignore[no-untyped-def]
    folder = bnb.edit(saved(name)[0], tmp_path / "m", **tensors)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.field == field
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"quant_type": "fp4"},
        {"blocksize": 0},
        {"blocksize": 63},
        {"blocksize": 2**40},
        {"blocksize": "64"},
        {"blocksize": 64.0},
        {"shape": None},
        {"shape": [64, 128]},
        {"shape": [128, 64, 1]},
        {"shape": [0, 2**62]},
        {"dtype": "float8"},
        {"dtype": 5},
        {"nested_offset": 0.5},
        {"more": 1},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_its_matrix(saved, tmp_path: Path, changes: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    source = saved("nf4")[0]
    folder = bnb.edit(source, tmp_path / "m", **{NF4: bnb.edit_state(source, NF4, **changes)})
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.field == NF4


@pytest.mark.parametrize(
    "changes",
    [{"nested_offset": "0"}, {"nested_offset": 10**400}, {"nested_blocksize": 64}, {"nested_dtype": "float16"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_nested_state_that_does_not_fit(saved, tmp_path: Path, changes: dict[str, object]) -> None:  # type: ignore[no-untyped-def]
    source = saved("nf4-double")[0]
    folder = bnb.edit(source, tmp_path / "m", **{NF4: bnb.edit_state(source, NF4, **changes)})
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.field == NF4


def test_random_changes_of_states_are_harmless_or_refused(saved, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = saved("nf4-double")[0]
    state = load_file(source / "model.safetensors")[NF4]
    draw = random.Random(5)
    fields = set()
    for number in range(40):
        data = bytearray(state.tolist())
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        changed = torch.tensor(list(data), dtype=torch.uint8)
        folder = bnb.edit(source, tmp_path / str(number), **{NF4: changed})
        try:
            engine = load(folder)
        except CheckpointError as problem:
            fields.add(problem.field)
        else:  # it changed the offset
            assert logits_of(engine).shape == (40, tiny.VOCABULARY)
    assert fields == {NF4}
