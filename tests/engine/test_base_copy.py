"""Adapters on the output layer, beside which PEFT saves the base's own matrix: which bases it is taken for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support import bnb, gguf_files, tiny
from support.blocks import input_codes
from support.logits import with_one_adapter
from support.precision import Codes, Reference, reference, whole_pass

from loradesk_engine.adapters import base_copy
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.errors import AdapterError
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.bnb import quantize
from loradesk_engine.model.dequantize import dequantize
from loradesk_engine.model.quantized import PackedMatrix

COPY = "base_model.model.lm_head.base_layer.weight"
WEIGHTS = "adapter_model.safetensors"
IDS = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(3))
CPU = torch.device("cpu")
SHAPE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and `tied`, and a LoRA of each on its output layer: `base-lora`, `tied-lora`."""
    root = tmp_path_factory.mktemp("copies")
    with torch.inference_mode(False):
        for name in ("base", "tied"):
            tiny.make_llama(root / name, tie_word_embeddings=name == "tied", **SHAPE)
            tiny.make_lora(root / name, root / f"{name}-lora", 1, target_modules=["lm_head", "q_proj"])
    assert COPY in load_file(root / "base-lora" / WEIGHTS)
    return root


def with_copy(adapter: Path, folder: Path, copy: torch.Tensor) -> Path:
    """The adapter with another copy of the output layer."""
    shutil.copytree(adapter, folder)
    save_file({**load_file(folder / WEIGHTS), COPY: copy.contiguous()}, folder / WEIGHTS)
    return folder


def load(base: Path, adapter: Path, **options: str) -> EngineCore:
    settings = {"dtype": "float32", "device": "cpu", **options}
    adapters = (AdapterSource("a", str(adapter)),)
    return EngineCore.load(LoadSettings(base=str(base), mode="lora", adapters=adapters, **settings))  # type: ignore[arg-type]


def peft_logits(base: Path, adapter: Path, codes: Codes | None) -> Reference:
    with torch.inference_mode(False):
        model = PeftModel.from_pretrained(tiny.load(base), adapter).eval()
    return reference(model, whole_pass(IDS), codes)


# --- quantized bases --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("packed", [False, True], ids=["dequantized once", "packed"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_0"])
@pytest.mark.parametrize("name", ["base", "tied"])
def test_on_a_gguf_base_it_loads_and_equals_peft_on_the_dequantized_one(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, packed: bool
) -> None:
    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: packed)
    model = tiny.load(folders / name)
    model.load_state_dict(gguf_files.write(model, tmp_path / "m.gguf", "llama", kind), strict=False)
    model.tie_weights()
    model.save_pretrained(tmp_path / "dequantized")
    # PEFT puts the copy into the model, so for it the copy has to be the dequantized matrix
    own = with_copy(folders / f"{name}-lora", tmp_path / "own", model.lm_head.weight)
    expected = peft_logits(tmp_path / "dequantized", own, input_codes(kind) if packed else None)
    for adapter in (folders / f"{name}-lora", own):
        engine = load(tmp_path / "m.gguf", adapter)
        assert "lm_head" in engine.adapters[0].target_modules
        expected.assert_near(with_one_adapter(engine, IDS))


@pytest.mark.parametrize("kind", ["nf4-head", "nf4-double-head", "int8-head"])
def test_on_a_bitsandbytes_base_with_a_quantized_head_it_loads_and_adds_what_peft_adds(
    folders: Path, tmp_path: Path, kind: str
) -> None:
    with torch.inference_mode(False):
        bnb.save_quantized(folders / "base", tmp_path / "base", kind)
    engine = load(tmp_path / "base", folders / "base-lora")
    head = engine.decoder.linears[-1]
    assert (head.path, head.dtype) == ("lm_head", None)
    tensors = load_file(folders / "base-lora" / WEIGHTS)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    assert engine.mixture is not None
    delta = engine.mixture.delta(torch.ones(1, 1, 1), [0])
    stem = COPY.removesuffix("base_layer.weight")
    a, b = (tensors[f"{stem}lora_{side}.weight"] for side in "AB")
    plain = engine.decoder.logits(hidden)
    expected = plain.double() + 2.0 * hidden.double() @ a.double().T @ b.double().T
    Reference(expected, plain + 2.0 * hidden @ a.T @ b.T).assert_near(engine.decoder.logits(hidden, delta))


def test_on_a_base_quantized_while_loading_the_checkpoint_is_what_counts(folders: Path, tmp_path: Path) -> None:
    assert load(folders / "base", folders / "base-lora", quantize="nf4").adapters[0].modules == 3
    other = load_file(folders / "base-lora" / WEIGHTS)[COPY] * 1.01
    with pytest.raises(AdapterError, match="differs"):
        load(folders / "base", with_copy(folders / "base-lora", tmp_path / "a", other), quantize="nf4")


def some_row_trained(copy: torch.Tensor) -> torch.Tensor:
    copy[7] *= 1.2
    return copy


def finetuned(copy: torch.Tensor) -> torch.Tensor:
    return copy + 0.05 * copy.std() * torch.randn(copy.shape, generator=torch.Generator().manual_seed(2))


def two_rows_swapped(copy: torch.Tensor) -> torch.Tensor:
    copy[[3, 4]] = copy[[4, 3]]
    return copy


def not_a_number(copy: torch.Tensor) -> torch.Tensor:
    copy[5] = float("nan")
    return copy


OTHERS = [
    some_row_trained,
    finetuned,
    two_rows_swapped,
    not_a_number,
    torch.zeros_like,
    torch.neg,
    lambda copy: copy[:-1],
    lambda copy: copy.to(torch.int8),
]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("kind", ["plain", "Q8_0", "Q4_0", "nf4-head", "int8-head"])
def test_another_matrix_is_refused_on_every_base(folders: Path, tmp_path: Path, kind: str, other) -> None:  # type: ignore[no-untyped-def]
    copy = other(load_file(folders / "base-lora" / WEIGHTS)[COPY].clone())
    adapter = with_copy(folders / "base-lora", tmp_path / "other", copy)
    base = folders / kind
    if kind == "plain":
        base = folders / "base"
    elif kind.startswith("Q"):
        base = folders / f"{kind}.gguf"
        if not base.exists():
            gguf_files.write(tiny.load(folders / "base"), base, "llama", kind)
    elif not base.exists():
        with torch.inference_mode(False):
            bnb.save_quantized(folders / "base", base, kind)
    with pytest.raises(AdapterError, match="differs") as caught:
        load(base, adapter)
    assert (caught.value.file, caught.value.field) == (str(adapter / WEIGHTS), "lm_head")
    assert caught.value.remedy


# --- every type, by the matrix ----------------------------------------------------------------------------------------


def rows_of(matrix: torch.Tensor, kind: str):  # type: ignore[no-untyped-def]
    """The matrix, quantized by somebody else, as the comparison sees it."""
    if kind.startswith("Q"):
        raw = gguf.quants.quantize(matrix.float().numpy(), getattr(gguf.GGMLQuantizationType, kind))
        return base_copy._gguf_rows(PackedMatrix(torch.from_numpy(raw), kind, *matrix.shape))
    made = quantize(matrix, kind, CPU)  # type: ignore[arg-type]
    return base_copy._eight_bit_rows(made) if kind == "int8" else base_copy._four_bit_rows(made)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "nf4", "fp4", "int8"])
@pytest.mark.parametrize("heavy", [False, True], ids=["normal", "heavy tails"])
def test_a_matrix_is_known_again_after_quantizing(kind: str, heavy: bool) -> None:
    torch.manual_seed(0)
    plain = torch.distributions.StudentT(3.0).sample((96, 512)) if heavy else torch.randn(96, 512)
    plain *= 0.02 * torch.logspace(-2, 1, 96)[:, None]  # rows of very different size
    for dtype in (torch.float32, torch.bfloat16):
        matrix = plain.to(dtype)
        for copy in (matrix, matrix.float(), plain.bfloat16()):
            assert base_copy._in_ranges(copy, rows_of(matrix, kind))
        trained = matrix.float() + 0.05 * matrix.float().std(1, keepdim=True) * torch.randn(plain.shape)
        for copy in (trained, trained.to(dtype), matrix.flip(1), matrix.roll(1, 0)):
            assert not base_copy._in_ranges(copy, rows_of(matrix, kind))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "nf4", "int8"])
def test_a_group_of_zeros_stands_for_zeros_only(kind: str) -> None:
    matrix = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    matrix[:, :64] = 0
    matrix[3] = 0
    before = matrix.clone()
    assert base_copy._in_ranges(matrix, rows_of(matrix, kind))
    assert torch.equal(matrix, before)  # it is the adapter's own memory
    for rows, columns in ((slice(None), slice(0, 64)), (slice(3, 4), slice(None))):
        other = matrix.clone()
        other[rows, columns] = 0.5
        assert not base_copy._in_ranges(other, rows_of(matrix, kind))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_the_ranges_of_types_that_only_others_can_write(kind: str) -> None:
    """What stands nearest to the codes is accepted, what stands nearest to their neighbours is not."""
    torch.manual_seed(0)
    values, size = gguf.GGML_QUANT_SIZES[getattr(gguf.GGMLQuantizationType, kind)]
    raw = torch.randint(0, 256, (32, 512 // values, size), dtype=torch.uint8)
    scales = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0]}[kind]
    for start in scales:  # float16 numbers of 0.01 to 0.02
        raw[..., start : start + 2] = (0.01 + 0.01 * torch.rand(32, 512 // values, 1)).half().view(torch.uint8)
    packed = PackedMatrix(raw.view(32, -1), kind, 32, 512)
    own = dequantize(packed.raw, kind, 32, 512)
    (part,) = base_copy._gguf_rows(packed)
    place, last = part.place.long(), len(part.levels) - 1
    torch.testing.assert_close(part.levels[place] * part.scale + part.zero, own)
    up = part.levels.diff()[place.clamp(max=last - 1)] * part.scale
    near = torch.where(place < last, 0.45 * up, 0.0)
    far = torch.where(place < last, 0.6 * up, 2 * up)
    assert base_copy._in_ranges(own + near, base_copy._gguf_rows(packed))
    assert not base_copy._in_ranges(own + far, base_copy._gguf_rows(packed))


# --- bases of plain numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("stored", "copied"),
    [("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "float16"), ("bfloat16", "float32"),
     ("float16", "bfloat16"), ("float16", "float32"), ("float32", "float32")],
)  # fmt: skip
def test_a_copy_in_another_type_of_numbers_is_the_same(
    folders: Path, tmp_path: Path, stored: str, copied: str, held: str
) -> None:
    kind = getattr(torch, stored)
    model = transformers.LlamaForCausalLM.from_pretrained(folders / "base", dtype=kind)
    model.save_pretrained(tmp_path / "base")
    tiny.write_tokenizer(tmp_path / "base")
    assert json.loads((tmp_path / "base" / "config.json").read_text(encoding="utf-8"))["dtype"] == stored
    copy = model.lm_head.weight.to(getattr(torch, copied))
    adapter = with_copy(folders / "base-lora", tmp_path / "a", copy)
    assert "lm_head" in load(tmp_path / "base", adapter, dtype=held).adapters[0].target_modules
    copy[3, 5] *= 1.02
    with pytest.raises(AdapterError, match="differs"):
        load(tmp_path / "base", with_copy(folders / "base-lora", tmp_path / "b", copy), dtype=held)
