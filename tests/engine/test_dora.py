"""DoRA and biases of adapters, against PEFT: what they add, on which base, beside which other adapters."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from support import blocks, bnb, gguf_files, tiny
from support.precision import Reference, exact, reference, whole_pass

from loradesk_engine.adapters.shift import Shift, gain_of
from loradesk_engine.commands import AdapterSource, CompletionRequest, LoadSettings, Sampling
from loradesk_engine.errors import AdapterError
from loradesk_engine.events import TokensGenerated
from loradesk_engine.formats.bnb import BnbConfig
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model import linear as linear_module
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.bnb import bnb_linear, quantize
from loradesk_engine.model.linear import DenseLinear, Linear
from loradesk_engine.model.quantized import PackedLinear, PackedMatrix

pytestmark = pytest.mark.usefixtures("both_paths")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
IDS = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(3))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose linears have biases, but for `lm_head`."""
    folder = tmp_path_factory.mktemp("dora") / "base"
    model = tiny.make_llama(folder, attention_bias=True, mlp_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def train(base: Path, folder: Path, seed: int = 1, **options: Any) -> PeftModel:
    """An adapter as training might leave it: A and B random, magnitudes and biases off what they were."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "init_lora_weights": False, **options}
    model = get_peft_model(tiny.load(base), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 1.5))
            elif "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.15)
            elif name.endswith(".bias") and parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


DORA, BIASED, ONLY = {"use_dora": True}, {"lora_bias": True}, {"bias": "lora_only"}


@dataclass(frozen=True)
class Trained:
    """An adapter's folder and PEFT's model with it."""

    folder: Path
    model: PeftModel


@pytest.fixture(scope="module")
def trained(base: Path) -> dict[str, Trained]:
    """An adapter of each kind."""
    kinds = {"plain": {}, "use_dora": DORA, "lora_bias": BIASED, "bias": ONLY}
    made = {}
    for seed, (name, options) in enumerate(kinds.items()):
        folder = base.parent / name
        made[name] = Trained(folder, train(base, folder, seed, **options))
    return made


def load(base: Path | str, *adapters: Path, **changes: Any) -> EngineCore:
    """The engine with adapters named by their folders."""
    sources = tuple(AdapterSource(folder.name, str(folder)) for folder in adapters)
    settings = {"base": str(base), "mode": "lora", "adapters": sources, "dtype": "float32", "device": "cpu"} | changes
    return EngineCore.load(LoadSettings(**settings))


def logits_of(engine: EngineCore, *weights: list[float], ids: torch.Tensor = IDS) -> torch.Tensor:
    """One sequence for each list of the adapters' weights, all in one batch: [sequences, tokens, vocab]."""
    assert engine.mixture is not None
    count, length = len(weights), ids.shape[1]
    cache = engine.decoder.new_cache()
    cache.reserve(count, length)
    scalings = torch.tensor(weights).repeat_interleave(length, 0)[:, None, :]
    active = [place for place in range(scalings.shape[-1]) if scalings[..., place].any()]
    delta = engine.mixture.delta(scalings, active)
    segments = tuple(Segment(slot, slot * length, length, 0) for slot in range(count))
    batch = Batch(ids[:count].reshape(-1), torch.arange(length).repeat(count), segments, delta)
    hidden = engine.decoder.forward(batch, cache)
    return engine.decoder.logits(hidden, delta).view(count, length, -1)


def peft_logits(model: Any, ids: torch.Tensor = IDS) -> Reference:
    """[sequences, tokens, vocab]"""
    return reference(model, lambda model: model(ids).logits)


# --- against PEFT -----------------------------------------------------------------------------------------------------

OPTIONS = [
    pytest.param({"use_dora": True}, id="dora"),
    pytest.param({"use_dora": True, "use_rslora": True, "lora_alpha": 5}, id="dora-rslora"),
    pytest.param(
        {"use_dora": True, "rank_pattern": {"q_proj": 7, "layers.1.mlp.down_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        id="dora-patterns",
    ),
    pytest.param({"use_dora": True, "target_modules": ["v_proj", "up_proj", "lm_head"]}, id="dora-some-and-head"),
    pytest.param({"use_dora": True, "bias": "lora_only"}, id="dora-trained-biases"),
    pytest.param({"lora_bias": True}, id="lora-bias"),
    pytest.param({"lora_bias": True, "use_rslora": True, "target_modules": ["k_proj", "lm_head"]}, id="lora-bias-some"),
    pytest.param({"bias": "lora_only", "target_modules": ["q_proj", "gate_proj"]}, id="trained-biases-of-targets"),
    pytest.param({"bias": "all", "target_modules": ["q_proj", "gate_proj"]}, id="all-biases-trained"),
]


@pytest.mark.parametrize("options", OPTIONS)
def test_it_equals_peft(base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = train(base, tmp_path / "a", **options)
    engine = load(base, tmp_path / "a")
    expected = peft_logits(model)
    assert (expected.own - tiny.load(base)(IDS).logits).abs().max() > 0.1
    expected.assert_near(logits_of(engine, [1.0], [1.0]))


@pytest.mark.parametrize("weight", [0.5, -1.0])
@pytest.mark.parametrize("name", ["use_dora", "lora_bias"])
def test_a_weight_goes_from_the_base_to_the_adapter(
    base: Path, trained: dict[str, Trained], name: str, weight: float
) -> None:
    folder, model = trained[name].folder, trained[name].model

    def between(module: Any, inputs: tuple[torch.Tensor], adapted: torch.Tensor) -> torch.Tensor:
        plain = module.base_layer(*inputs)
        return plain + weight * (adapted - plain)

    hooks = [module.register_forward_hook(between) for module in model.modules() if hasattr(module, "base_layer")]
    expected = peft_logits(model, IDS[:1])
    for hook in hooks:
        hook.remove()
    expected.assert_near(logits_of(load(base, folder), [weight]))


def test_it_adds_up_with_a_plain_adapter(base: Path, trained: dict[str, Trained]) -> None:
    """As in PEFT where DoRA comes first; its base is then the model's own."""
    dora, plain = trained["use_dora"].folder, trained["plain"].folder
    peft = tiny.peft_with(base, {"dora": dora, "plain": plain})
    peft_logits(peft, IDS[:1]).assert_near(logits_of(load(base, plain, dora), [1.0, 1.0]))


def test_rows_of_one_batch_have_their_own(base: Path, trained: dict[str, Trained]) -> None:
    engine = load(base, *(each.folder for each in trained.values()))
    ids = torch.randint(0, 256, (5, 30), generator=torch.Generator().manual_seed(4))
    together = logits_of(engine, *torch.eye(5)[:, :4].tolist(), ids=ids)
    models = [each.model for each in trained.values()]
    for row, model in enumerate([*models, tiny.load(base)]):
        reference(model, whole_pass(ids[row])).assert_near(together[row])
    nothing = logits_of(engine, *[[0.0] * 4] * 5, ids=ids)
    assert torch.equal(together[4], nothing[4])  # the base's row, bit for bit


@pytest.mark.parametrize("name", ["use_dora", "lora_bias", "bias"])
def test_it_decodes_like_peft(base: Path, trained: dict[str, Trained], name: str) -> None:
    """Beside a plain adapter, switched on while the graphs of a GPU are there."""
    engine = load(base, trained["plain"].folder, trained[name].folder)
    for active in ("plain", name, "plain"):
        engine.activate({active: 1.0})
        prompt, tokens = IDS[0, :12].tolist(), []
        engine.submit(CompletionRequest("r", tuple(prompt), Sampling(max_tokens=10, temperature=0.0, ignore_end=True)))
        while engine.busy:
            for event in engine.step():
                if isinstance(event, TokensGenerated):
                    tokens += event.token_ids
        logits = trained[active].model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()


def shifts() -> int:
    """How many there are in memory."""
    gc.collect()
    return sum(type(each) is Shift for each in gc.get_objects())


def test_a_removed_one_leaves_nothing(base: Path, tmp_path: Path, trained: dict[str, Trained]) -> None:
    before = shifts()
    train(base, tmp_path / "all", 9, bias="all", target_modules=["q_proj"])
    plain = trained["plain"]
    engine = load(base, trained["use_dora"].folder, tmp_path / "all", plain.folder)
    assert shifts() > before
    sizes = [info.nbytes for info in engine.adapters]
    assert sizes[0] > sizes[2]  # magnitudes beside matrices of the same size
    for name in ("use_dora", "all"):
        engine.remove_adapter(name)
    assert shifts() == before
    peft_logits(plain.model, IDS[:1]).assert_near(logits_of(engine, [1.0]))
    assert torch.equal(logits_of(engine, [1.0]), logits_of(load(base, plain.folder), [1.0]))


@pytest.mark.parametrize("both_paths", ["torch"], indirect=True)  # the kernels compute in float32
def test_bfloat16_is_as_near_to_float32_as_pefts(base: Path, tmp_path: Path) -> None:
    model = train(base, tmp_path / "a", use_dora=True)
    engine = load(base, tmp_path / "a", dtype="bfloat16")
    expected = exact(model, lambda model: model(IDS).logits)
    own = model.to(torch.bfloat16)(IDS).logits
    Reference(expected, own).assert_near(logits_of(engine, [1.0], [1.0]))


# --- quantized bases --------------------------------------------------------------------------------------------------


def test_on_a_packed_base_it_equals_peft_on_the_dequantized_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: True)
    model = tiny.make_llama(tmp_path / "base")
    model.load_state_dict(gguf_files.write(model, tmp_path / "m.gguf", "llama", "Q4_0"), strict=False)
    model.save_pretrained(tmp_path / "base")
    trained = train(tmp_path / "base", tmp_path / "a", use_dora=True)
    engine = load(tmp_path / "m.gguf", tmp_path / "a")
    assert isinstance(engine.decoder.linears[0], PackedLinear)
    expected = reference(trained, whole_pass(IDS[0]), blocks.input_codes("Q4_0"))
    expected.assert_near(logits_of(engine, [1.0])[0])


def test_on_a_four_bit_base_it_equals_peft_on_the_dequantized_one(base: Path, tmp_path: Path) -> None:
    trained = train(bnb.save_rounded(base, tmp_path / "rounded", "nf4"), tmp_path / "a", use_dora=True)
    engine = load(base, tmp_path / "a", quantize="nf4")
    peft_logits(trained, IDS[:1]).assert_near(logits_of(engine, [1.0]))


def packed(matrix: torch.Tensor) -> tuple[Linear, torch.Tensor]:
    import gguf

    kind = gguf.GGMLQuantizationType.Q5_0
    raw = gguf.quants.quantize(matrix.numpy(), kind)
    held = PackedMatrix(torch.from_numpy(raw), "Q5_0", *matrix.shape).on(torch.device("cpu"))
    return PackedLinear("p", 0, held), torch.from_numpy(gguf.quants.dequantize(raw, kind))


def bitsandbytes(kind: Any, device: str) -> Callable[[torch.Tensor], tuple[Linear, torch.Tensor]]:
    def make(matrix: torch.Tensor) -> tuple[Linear, torch.Tensor]:
        place = torch.device(device)
        quantized = quantize(matrix, kind, place)
        linear = bnb_linear("p", 0, quantized, None, BnbConfig(kind), device=place, dtype=torch.float32)
        return linear, bnb.rounded(matrix.to(place), kind)

    return make


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda matrix: (DenseLinear("p", 0, matrix), matrix), id="dense"),
        pytest.param(packed, id="gguf"),
        *(
            pytest.param(bitsandbytes(kind, device), id=f"{kind}-{device}")
            for kind in ("nf4", "fp4", "int8")
            for device in DEVICES
        ),
    ],
)
def test_the_norm_is_that_of_the_weight_a_linear_stands_for(
    make: Callable[[torch.Tensor], tuple[Linear, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_module, "SLICE_VALUES", 64 * 7)  # several slices, the last one shorter
    torch.manual_seed(0)
    linear, weight = make(torch.randn(96, 64))
    assert torch.equal(torch.cat(list(linear.weight_slices())), weight)
    a, b, magnitude = (tensor.to(weight.device) for tensor in (torch.randn(3, 64), torch.randn(96, 3), torch.rand(96)))
    expected = magnitude.double() / (weight.double() + 0.7 * b.double() @ a.double()).norm(dim=1)
    own = magnitude / (weight + 0.7 * b @ a).norm(dim=1)
    Reference(expected, own).assert_near(gain_of(linear, a, b, 0.7, magnitude))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["use_dora", "lora_bias", "bias"])
def test_xlora_refuses_it_by_name(zoo, tmp_path: Path, trained: dict[str, Trained], option: str) -> None:  # type: ignore[no-untyped-def]
    checkpoint = shutil.copytree(zoo.xlora, tmp_path / "xlora")
    shutil.copytree(trained[option].folder, checkpoint / "adapter_10", dirs_exist_ok=True)
    settings = LoadSettings(str(zoo.base), mode="xlora", xlora=str(checkpoint), ordering=str(zoo.xlora_ordering))
    with pytest.raises(AdapterError, match=rf"'adapter_10' was trained with {option}, .*X-LoRA") as caught:
        EngineCore.load(settings)
    assert caught.value.field == option
    assert caught.value.remedy is not None
    assert "adapter_10" in str(caught.value.file)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS)

    return edit


def config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        (folder / CONFIG).write_text(json.dumps(values | changes), encoding="utf-8")

    return edit


PREFIX = f"base_model.model.{Q}"
MAGNITUDE, BIAS, TRAINED = (f"{PREFIX}.{end}" for end in ("lora_magnitude_vector", "lora_B.bias", "base_layer.bias"))
WRONG = [
    pytest.param("use_dora", tensors(lambda t: t.pop(MAGNITUDE)), Q, "is missing.*use_dora", id="a magnitude too few"),
    pytest.param(
        "use_dora",
        tensors(lambda t: t.update({MAGNITUDE: torch.ones(31)})),
        MAGNITUDE,
        "vector of 32",
        id="a short one",
    ),
    pytest.param(
        "use_dora",
        tensors(lambda t: t.update({MAGNITUDE: torch.ones(32, 1)})),
        MAGNITUDE,
        "vector of 32",
        id="a matrix",
    ),
    pytest.param(
        "use_dora",
        tensors(lambda t: t.update({MAGNITUDE: torch.ones(32, dtype=torch.int32)})),
        MAGNITUDE,
        "type I32",
        id="integers",
    ),
    pytest.param(
        "use_dora", tensors(lambda t: t[MAGNITUDE].fill_(float("nan"))), MAGNITUDE, "not finite", id="not a number"
    ),
    pytest.param(
        "use_dora", config(use_dora=False), "lora_magnitude", "without use_dora", id="magnitudes without DoRA"
    ),
    pytest.param("use_dora", config(use_dora="yes"), "use_dora", "true or false", id="DoRA as text"),
    pytest.param("use_dora", config(lora_bias=True), "lora_bias", "does not go together", id="DoRA and a bias"),
    pytest.param("lora_bias", tensors(lambda t: t.pop(BIAS)), Q, "is missing.*lora_bias", id="a bias too few"),
    pytest.param(
        "lora_bias", tensors(lambda t: t.update({BIAS: torch.ones(33)})), BIAS, "vector of 32", id="a long bias"
    ),
    pytest.param(
        "lora_bias", config(lora_bias=False), "lora_B.bias", "without lora_bias", id="a bias that is not announced"
    ),
    pytest.param("bias", config(bias="some"), "bias", "bias = 'some'", id="an unknown kind of biases"),
    pytest.param("bias", config(bias="none"), "_proj", "bias of its own", id="trained biases that are not announced"),
    pytest.param(
        "bias", tensors(lambda t: t.update({TRAINED: torch.ones(5)})), TRAINED, "bias of 5", id="of 5 outputs"
    ),
    pytest.param(
        "bias",
        tensors(lambda t: t.update({"base_model.model.lm_head.base_layer.bias": torch.ones(260)})),
        "lm_head",
        "model has none",
        id="for a linear without a bias",
    ),
    pytest.param(
        "bias",
        tensors(lambda t: t.update({"base_model.model.model.norm.bias": torch.ones(32)})),
        "norm.bias",
        "trained biases of norms",
        id="of a norm",
    ),
    pytest.param(
        "bias",
        tensors(lambda t: t.update({"base_model.model.model.layers.7.mlp.up_proj.bias": torch.ones(64)})),
        "layers.7",
        "does not have",
        id="of a linear that is not there",
    ),
]


@pytest.fixture(scope="module")
def engine(base: Path, trained: dict[str, Trained]) -> EngineCore:
    """Refusals leave it as it is."""
    return load(base, trained["plain"].folder)


@pytest.mark.parametrize(("option", "change", "field", "message"), WRONG)
def test_what_does_not_fit_is_refused_and_the_others_stay(
    engine: EngineCore,
    tmp_path: Path,
    trained: dict[str, Trained],
    option: str,
    change: Callable[[Path], None],
    field: str,
    message: str,
) -> None:
    before = logits_of(engine, [1.0])
    folder = Path(shutil.copytree(trained[option].folder, tmp_path / "bad"))
    change(folder)
    with pytest.raises(AdapterError, match=message) as caught:
        engine.add_adapter(AdapterSource("bad", str(folder)))
    assert field in (caught.value.field or "")
    assert caught.value.file is not None
    assert [info.name for info in engine.adapters] == ["plain"]
    assert torch.equal(logits_of(engine, [1.0]), before)


def test_magnitudes_under_the_names_of_other_versions(base: Path, tmp_path: Path, trained: dict[str, Trained]) -> None:
    """PEFT drops `.weight` and the adapter's name when it saves; a state dict saved by hand has them."""
    folder = Path(shutil.copytree(trained["use_dora"].folder, tmp_path / "a"))
    held = load_file(folder / WEIGHTS)
    for ending in (".weight", ".default.weight"):
        renamed = {name.replace("_vector", f"_vector{ending}"): tensor for name, tensor in held.items()}
        save_file(renamed, folder / WEIGHTS)
        peft_logits(trained["use_dora"].model, IDS[:1]).assert_near(logits_of(load(base, folder), [1.0]))
