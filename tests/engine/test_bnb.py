"""bitsandbytes bases: the linears against bitsandbytes' own, bases quantized while loading, adapters on top."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from support import bnb, tiny
from support.precision import Codes, Reference, exact, reference, whole_pass
from support.xlora_oracle import XLoraOracle

from loradesk_engine.cli import model_options
from loradesk_engine.commands import AdapterSource, CompletionRequest, LoadSettings, Sampling
from loradesk_engine.errors import OrderingError, RequestError
from loradesk_engine.events import TokensGenerated
from loradesk_engine.formats.bnb import TABLES, BnbConfig, EightBitMatrix, FourBitMatrix
from loradesk_engine.formats.config import read_config
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model import bnb as bnb_model
from loradesk_engine.model import bnb as bnb_module
from loradesk_engine.model.base import read_base
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.bnb import EightBitLinear, FourBitLinear, bnb_linear, quantize
from loradesk_engine.model.build import build_decoder
from loradesk_engine.model.linear import DenseLinear
from loradesk_engine.model.native.library import library
from loradesk_engine.model.quantized import PackedLinear
from loradesk_resources import resource_path

CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
KINDS = ["nf4", "fp4", "int8"]
IDS = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def made(
    matrix: torch.Tensor,
    kind: str,
    bias: torch.Tensor | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    threshold: float = 6.0,
) -> FourBitLinear | EightBitLinear | PackedLinear:
    place = torch.device(device)
    config = BnbConfig(kind, threshold=threshold)  # type: ignore[arg-type]
    quantized = quantize(matrix, config.kind, place)
    bias = None if bias is None else bias.to(place, dtype)
    return bnb_linear("p", 3, quantized, bias, config, device=place, dtype=dtype)


def logits_of(engine: EngineCore) -> torch.Tensor:
    """Of all of IDS in one pass, without adapters. [tokens, vocab]"""
    cache = engine.decoder.new_cache()
    cache.reserve(1, len(IDS))
    device = engine.decoder.device
    batch = Batch(IDS.to(device), torch.arange(len(IDS), device=device), (Segment(0, 0, len(IDS), 0),), None)
    return engine.decoder.logits(engine.decoder.forward(batch, cache)).cpu()


def answer(engine: EngineCore) -> tuple[list[int], torch.Tensor, torch.Tensor | None]:
    """Greedy token ids, their log-probabilities, and X-LoRA's scalings if there are any."""
    prompt = CompletionRequest("r", tuple(IDS[:20].tolist()), Sampling(max_tokens=12, ignore_end=True, logprobs=1))
    engine.submit(prompt)
    tokens, logprobs, scalings = [], [], []
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensGenerated):
                tokens += event.token_ids
                logprobs += [entry.logprob for entry in event.logprobs]
                if event.scalings is not None:
                    scalings.append(torch.from_numpy(event.scalings))
    return tokens, torch.tensor(logprobs), torch.cat(scalings) if scalings else None


# --- linears ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "bitsandbytes"])
def test_a_four_bit_linear_equals_bitsandbytes_own(
    compiled: bool, device: str, kind: str, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes

    if not compiled:
        monkeypatch.setattr(bnb_module, "library", lambda: None)
    torch.manual_seed(rows)
    matrix, bias = torch.randn(96, 128) * 0.1, torch.randn(96)
    x = torch.randn(rows, 128, device=device).to(dtype)
    own = bitsandbytes.nn.Linear4bit(128, 96, quant_type=kind, compress_statistics=False, compute_dtype=dtype)
    own.load_state_dict({"weight": matrix, "bias": bias})
    own = own.to(device).eval()
    ours = made(matrix, kind, bias, device, dtype)
    by_kernels = compiled and device == "cpu" and dtype == torch.float32 and library() is not None
    assert isinstance(ours, PackedLinear if by_kernels else FourBitLinear)
    bnb.exact(own)
    expected = F.linear(x.double().cpu(), bnb.rounded(matrix.to(device), kind).double().cpu(), bias.double())
    Reference(expected, own(x.clone()).cpu()).assert_near(ours(x).cpu())
    assert (ours.path, ours.index, ours.in_features, ours.out_features) == ("p", 3, 128, 96)
    assert ours.nbytes == 96 * 128 // 2 + 96 * 128 // 64 * 4 + bias.numel() * dtype.itemsize


@pytest.mark.parametrize("threshold", [0.0, 2.0, 6.0])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("device", DEVICES)
def test_an_eight_bit_linear_equals_bitsandbytes_own(
    device: str, rows: int, dtype: torch.dtype, threshold: float
) -> None:
    import bitsandbytes

    torch.manual_seed(rows)
    matrix, bias = torch.randn(96, 128) * 0.1, torch.randn(96)
    x = torch.randn(rows, 128, device=device).to(dtype)
    x[0, 5] = 9.0  # an outlier in one row
    own = bitsandbytes.nn.Linear8bitLt(128, 96, has_fp16_weights=False, threshold=threshold)
    own.load_state_dict({"weight": matrix, "bias": bias})
    own = own.to(device).eval()
    ours = made(matrix, "int8", bias, device, dtype, threshold)
    assert isinstance(ours, EightBitLinear)
    torch.testing.assert_close(ours(x), own(x.clone()), atol=0, rtol=0)
    assert ours.nbytes == 96 * 128 + 96 * 4 + bias.numel() * dtype.itemsize


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 32), (32, 96), (6, 48), (10, 130), (128, 128)])
def test_blocks_that_run_on_over_rows(shape: tuple[int, int], kind: str) -> None:
    """bitsandbytes 0.50 dequantizes such a matrix wrongly on the CPU; the linear does not."""
    torch.manual_seed(1)
    matrix, x = torch.randn(shape), torch.randn(3, shape[1])
    rounded = bnb.rounded(matrix, kind)
    Reference(F.linear(x.double(), rounded.double()), F.linear(x, rounded)).assert_near(made(matrix, kind)(x))


def test_the_tables_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import get_4bit_type

    for kind, table in TABLES.items():
        assert torch.equal(torch.tensor(table), get_4bit_type(kind, device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_slices_make_the_same_matrix_as_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    matrix, x = torch.randn(300, 96), torch.randn(2, 96)
    whole, y = quantize(matrix, kind, CPU), made(matrix, kind)(x)  # type: ignore[arg-type]
    monkeypatch.setattr(bnb_model, "SLICE_VALUES", 64 * 96)
    parts, z = quantize(matrix, kind, CPU), made(matrix, kind)(x)  # type: ignore[arg-type]
    if isinstance(whole, FourBitMatrix) and isinstance(parts, FourBitMatrix):
        assert torch.equal(whole.packed, parts.packed)
    else:
        assert isinstance(whole, EightBitMatrix)
        assert isinstance(parts, EightBitMatrix)
        assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.scales, parts.scales)
    Reference(F.linear(x.double(), bnb.rounded(matrix, kind).double()), y).assert_near(z)


# --- bases quantized while loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_four_bit_base_equals_the_rounded_checkpoint(zoo, tmp_path: Path, device: str, kind: str) -> None:  # type: ignore[no-untyped-def]
    rounded = bnb.save_rounded(zoo.base, tmp_path / "rounded", kind, device)
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), quantize=kind, device=device, dtype="float32"))  # type: ignore[arg-type]
    model = transformers.LlamaForCausalLM.from_pretrained(rounded, dtype=torch.float32).eval()
    reference(model, whole_pass(IDS)).assert_near(logits_of(engine))


def test_an_eight_bit_base_is_near_the_rounded_checkpoint(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rounded = bnb.save_rounded(zoo.base, tmp_path / "rounded", "int8")
    engine = EngineCore.load(LoadSettings(base=str(zoo.base), quantize="int8", device="cpu", dtype="float32"))
    model = transformers.LlamaForCausalLM.from_pretrained(rounded, dtype=torch.float32).eval()
    # inputs are rounded to 8 bits too, which the checkpoint does not show
    reference(model, whole_pass(IDS), Codes(None, largest=127)).assert_near(logits_of(engine))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_base_equals_transformers_with_bitsandbytes(tmp_path: Path, kind: str) -> None:
    tiny.make_llama(tmp_path / "base", hidden_size=64, intermediate_size=128, attention_bias=True, mlp_bias=True)
    model = bnb.save_quantized(tmp_path / "base", tmp_path / "saved", kind)
    engine = EngineCore.load(
        LoadSettings(base=str(tmp_path / "base"), quantize=kind, device="cpu", dtype="float32")  # type: ignore[arg-type]
    )
    rounded = bnb.save_rounded(tmp_path / "base", tmp_path / "rounded", kind)
    expected = exact(
        transformers.LlamaForCausalLM.from_pretrained(rounded, dtype=torch.float32).eval(), whole_pass(IDS)
    )
    Reference(expected, whole_pass(IDS)(model)).assert_near(logits_of(engine))


def test_what_is_quantized_while_loading(tmp_path: Path) -> None:
    tiny.make_llama(tmp_path, hidden_size=64, intermediate_size=128)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path), quantize="nf4", dtype="float32"))
    types = {linear.path.rpartition(".")[2]: linear.dtype for linear in engine.decoder.linears}
    assert types.pop("lm_head") is torch.float32
    assert set(types.values()) == {None}  # quantized
    dense = EngineCore.load(LoadSettings(base=str(tmp_path), dtype="float32"))
    assert engine.info.parameters == dense.info.parameters
    matrices = sum(linear.in_features * linear.out_features for linear in engine.decoder.linears[:-1])
    assert dense.info.weight_bytes - engine.info.weight_bytes == matrices * 4 - matrices // 2 - matrices // 64 * 4


def test_mixtrals_router_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**tiny.SMALL, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    tiny.write_tokenizer(tmp_path)
    source = read_base(tmp_path, "int8")
    decoder = build_decoder(source.config, source.weights(), tmp_path, device=CPU, dtype=torch.float32, context=64)
    dense = {linear.path for linear in decoder.linears if isinstance(linear, DenseLinear)}
    assert dense == {"lm_head", *(f"model.layers.{layer}.block_sparse_moe.gate" for layer in range(2))}


class Watched(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors, as copies; how many of its matrices were alive at once."""

    def __init__(self, folder: Path) -> None:
        self.tensors = load_file(folder / "model.safetensors")
        self.alive = 0
        self.most = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name].to(torch.bfloat16, copy=True)
        if name.endswith("_proj.weight"):
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(tensor.untyped_storage(), self.release)
        return tensor

    def release(self) -> None:
        self.alive -= 1

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_only_one_matrix_is_there_in_16_bits_at_a_time(zoo, kind: str) -> None:  # type: ignore[no-untyped-def]
    source, weights = read_base(zoo.base, kind), Watched(zoo.base)  # type: ignore[arg-type]
    build_decoder(source.config, weights, zoo.base, device=CPU, dtype=torch.bfloat16, context=64)
    assert (weights.most, weights.alive) == (1, 0)


def test_a_base_made_while_loading_says_that_it_is_slow_on_the_cpu(zoo) -> None:  # type: ignore[no-untyped-def]
    for kind in KINDS:
        engine = EngineCore.load(LoadSettings(base=str(zoo.base), quantize=kind, device="cpu"))  # type: ignore[arg-type]
        assert ["GGUF" in warning for warning in engine.info.warnings] == [True]
    assert EngineCore.load(LoadSettings(base=str(zoo.base), device="cpu")).info.warnings == ()


def test_a_load_with_another_quantization_does_not_reuse_the_base(zoo) -> None:  # type: ignore[no-untyped-def]
    first = EngineCore.load(LoadSettings(base=str(zoo.base), quantize="nf4"))
    same = EngineCore.load(LoadSettings(base=str(zoo.base), quantize="nf4"), previous=first)
    other = EngineCore.load(LoadSettings(base=str(zoo.base), quantize="fp4"), previous=first)
    dense = EngineCore.load(LoadSettings(base=str(zoo.base)), previous=first)
    assert same.decoder is first.decoder
    assert len({id(engine.decoder) for engine in (first, other, dense)}) == 3
    assert same.info.warnings == first.info.warnings


def test_a_quantized_or_unknown_base_is_refused_by_name(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bnb.save_quantized(zoo.base, tmp_path / "saved", "nf4")
    gguf = resource_path("demo") / "base-q8_0.gguf"
    for base, reason in ((tmp_path / "saved", "bitsandbytes"), (gguf, "GGUF")):
        with pytest.raises(RequestError, match=reason) as caught:
            EngineCore.load(LoadSettings(base=str(base), quantize="int8"))
        assert (caught.value.field, caught.value.file) == ("quantize", str(base))
    with pytest.raises(RequestError, match="nf5") as caught:
        EngineCore.load(LoadSettings(base=str(zoo.base), quantize="nf5"))  # type: ignore[arg-type]
    assert caught.value.field == "quantize"


@pytest.mark.slow
def test_bitsandbytes_is_not_imported_for_other_bases(zoo) -> None:  # type: ignore[no-untyped-def]
    code = (
        "import sys\n"
        "from loradesk_engine.commands import LoadSettings\n"
        "from loradesk_engine.generation.engine import EngineCore\n"
        f"EngineCore.load(LoadSettings(base={str(zoo.base)!r}))\n"
        "assert 'bitsandbytes' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_option_of_the_terminal(zoo) -> None:  # type: ignore[no-untyped-def]
    import argparse

    parser = argparse.ArgumentParser()
    model_options.add_model_options(parser)
    asked = model_options.load_settings(parser.parse_args(["--base", str(zoo.base), "--quantize", "fp4"]))
    assert asked == LoadSettings(base=str(zoo.base), quantize="fp4")
    assert model_options.load_settings(parser.parse_args(["--demo", "--quantize", "int8"])).quantize == "int8"
    assert model_options.load_settings(parser.parse_args(["--demo"])).quantize == "none"


# --- adapters ---------------------------------------------------------------------------------------------------------


def chosen_logprobs(tokens: list[int]) -> Callable[[Any], torch.Tensor]:
    """What gives the log-probabilities of an answer's tokens by transformers or PEFT."""
    ids = torch.cat([IDS[:20], torch.tensor(tokens)])
    chosen = torch.tensor(tokens)[:, None]
    return lambda model: whole_pass(ids)(model)[19:-1].log_softmax(-1).gather(1, chosen)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_lora_on_a_quantized_base_equals_the_same_on_the_rounded_one(
    zoo, tmp_path: Path, device: str, kind: str
) -> None:  # type: ignore[no-untyped-def]
    rounded = bnb.save_rounded(zoo.base, tmp_path / "rounded", kind, device)
    adapters = (AdapterSource("a", str(zoo.adapters["adapter_1"])),)

    def load(base: Path, **options) -> EngineCore:  # type: ignore[no-untyped-def]
        return EngineCore.load(
            LoadSettings(base=str(base), mode="lora", adapters=adapters, device=device, dtype="float32", **options)
        )

    tokens, logprobs, _ = answer(load(zoo.base, quantize=kind))
    expected, _, _ = answer(load(rounded))
    assert tokens[0] == expected[0]
    if kind != "int8":  # whose inputs are rounded as well
        assert tokens == expected
    codes = Codes(None, largest=127) if kind == "int8" else None
    oracle = tiny.peft_with(rounded, {"a": zoo.adapters["adapter_1"]})
    reference(oracle, chosen_logprobs(tokens), codes).assert_near(logprobs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_an_xlora_on_a_quantized_base_equals_the_same_on_the_rounded_one(
    zoo, tmp_path: Path, device: str, kind: str
) -> None:  # type: ignore[no-untyped-def]
    rounded = bnb.save_rounded(zoo.base, tmp_path / "rounded", kind, device)

    def load(base: Path, **options) -> EngineCore:  # type: ignore[no-untyped-def]
        return EngineCore.load(
            LoadSettings(
                base=str(base), mode="xlora", xlora=str(zoo.xlora_peft), device=device, dtype="float32", **options
            )
        )

    tokens, logprobs, scalings = answer(load(zoo.base, quantize=kind))
    assert scalings is not None
    if kind != "int8":  # whose inputs are rounded as well
        assert tokens == answer(load(rounded))[0]
    codes = Codes(None, largest=127) if kind == "int8" else None
    oracle = XLoraOracle(rounded, zoo.xlora, zoo.xlora_ordering)
    ids = torch.cat([IDS[:20], torch.tensor(tokens)])
    reference(oracle, lambda oracle: oracle(ids)[1][: len(scalings)], codes).assert_near(scalings)
    places = torch.arange(19, len(ids) - 1)
    reference(oracle, lambda oracle: oracle(ids)[0][places, tokens], codes).assert_near(logprobs)


def test_xlora_on_a_four_bit_base_warns(zoo) -> None:  # type: ignore[no-untyped-def]
    for files in ({"xlora": zoo.xlora, "ordering": zoo.xlora_ordering}, {"xlora": zoo.xlora_peft}):
        for kind, warned in (("nf4", True), ("int8", False)):
            paths = {field: str(path) for field, path in files.items()}
            engine = EngineCore.load(LoadSettings(base=str(zoo.base), mode="xlora", quantize=kind, **paths))  # type: ignore[arg-type]
            assert any("8 bits" in warning for warning in engine.info.warnings) == warned


def test_an_ordering_file_with_layers_a_quantized_base_does_not_support(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = {**tiny.SMALL, "sliding_window": None, "pad_token_id": 0}
    transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(**values)).save_pretrained(tmp_path / "base")
    tiny.write_tokenizer(tmp_path / "base")
    layers = {"model.layers.0.mlp.c_fc": 0, "model.layers.0.self_attn.q_proj": 1}
    ordering = tiny.write_ordering(tmp_path / "o.json", base_model_id="base", layers=layers, order=[])
    with pytest.raises(OrderingError) as caught:
        EngineCore.load(LoadSettings(base=str(tmp_path / "base"), mode="lora", ordering=str(ordering), quantize="nf4"))
    assert "mlp.c_fc" in str(caught.value)
    assert "self_attn.q_proj" in str(caught.value)


def test_an_adapter_on_the_output_layer(zoo, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """PEFT saves the output layer beside such an adapter; `test_base_copy.py` says for which bases that is right."""
    adapters = (AdapterSource("wide", str(zoo.adapters["wide"])),)
    bnb.save_quantized(zoo.base, tmp_path / "head", "int8-head")
    for settings in (LoadSettings(base=str(zoo.base), quantize="nf4"), LoadSettings(base=str(tmp_path / "head"))):
        engine = EngineCore.load(replace(settings, mode="lora", adapters=adapters))
        assert "lm_head" in engine.adapters[0].target_modules


def test_the_configuration_of_a_plain_base_has_no_quantization(zoo) -> None:  # type: ignore[no-untyped-def]
    assert read_config(zoo.base).bnb is None
    source = read_base(zoo.base)
    assert (source.quantized, source.bits) == (None, None)
    made_while_loading = read_base(zoo.base, "int8")
    assert (made_while_loading.quantized, made_while_loading.bits) == ("bnb", 8)
    assert made_while_loading.parameters == source.parameters
