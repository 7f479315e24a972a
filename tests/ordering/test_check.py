"""Every rule on a file that breaks it, its fix, and the checker on whatever comes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import processor_time

from loradesk_engine.errors import OrderingError
from loradesk_engine.ordering import build
from loradesk_engine.ordering.check import (
    RULES,
    CheckContext,
    ClassifierFacts,
    Finding,
    check,
    raise_errors,
)
from loradesk_engine.ordering.finding import PreloadFacts
from loradesk_engine.ordering.modules import linear_modules, match_targets, number_layers
from loradesk_engine.ordering.rules_names import same_base
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

LLAMA = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 1}
PATHS = match_targets(linear_modules(LLAMA), ["q_proj", "v_proj"])
MODULES = frozenset(PATHS)
ADAPTERS = {"one": MODULES, "two": MODULES}
XLORA = CheckContext(
    base_model_id="org/base",
    config=LLAMA,
    adapter_modules=ADAPTERS,
    xlora=ClassifierFacts(layerwise=True, outputs=8),
)
GOOD = OrderingFile("org/base", ["one", "two"], number_layers(PATHS))
Q0, V0, Q1, V1 = PATHS
AWAY = PreloadAdapter("away", "org/away")


def layers(*paths: str) -> dict[str, int]:
    return number_layers(paths)


# rule -> file, context, severity, place, text in the message, what the fix changes (None: no fix)
CASES: dict[str, tuple[OrderingFile, CheckContext, str, str, str, dict[str, Any] | None]] = {
    "base-missing": (
        OrderingFile.parse('{"order": ["one"]}'),
        CheckContext(),
        "error",
        "/base_model_id",
        "does not say which base",
        None,
    ),
    "base-mismatch": (
        GOOD,
        replace(XLORA, base_model_id="org/other"),
        "warning",
        "/base_model_id",
        "for org/base, but org/other is loaded",
        {"base_model_id": "org/other"},
    ),
    "key-misspelt": (
        OrderingFile.parse('{"base_model_id": "b", "preload_adapter": []}'),
        CheckContext(),
        "warning",
        "/preload_adapter",
        "Did you mean 'preload_adapters'",
        None,
    ),
    "order-missing": (
        GOOD.replace(order=None),
        replace(XLORA, xlora=ClassifierFacts(True, 8, ("one", "two"))),
        "error",
        "/order",
        "order used in training",
        {"order": ["one", "two"]},
    ),
    "order-empty": (GOOD.replace(order=[]), XLORA, "error", "/order", "order used in training", None),
    "order-name-empty": (
        GOOD.replace(order=["one", " ", "two"]),
        XLORA,
        "error",
        "/order/1",
        "empty",
        {"order": ["one", "two"]},
    ),
    "order-duplicate": (
        GOOD.replace(order=["one", "two", "one"]),
        XLORA,
        "error",
        "/order/2",
        "one",
        {"order": ["one", "two"]},
    ),
    "order-unknown": (
        GOOD.replace(order=["one", "Tw_o"]),
        XLORA,
        "error",
        "/order/1",
        "Not found: Tw_o. Did you mean 'two'? There are one, two.",
        {"order": ["one", "two"]},
    ),
    "order-incomplete": (GOOD.replace(order=["one"]), XLORA, "warning", "/order", "not in order: two", None),
    "order-not-preloaded": (
        GOOD.replace(preload_adapters=[PreloadAdapter("two", "x")]),
        CheckContext(mode="lora"),
        "info",
        "/order/0",
        "one",
        None,
    ),
    "preload-broken": (
        GOOD.replace(order=None, preload_adapters=[AWAY]),
        CheckContext(preloads={AWAY: PreloadFacts(problem="No adapter named 'away' is here.")}),
        "error",
        "/preload_adapters/0/adapter_model_id",
        "'away' at org/away: No adapter named",
        None,
    ),
    "preload-missing": (
        GOOD.replace(order=None, preload_adapters=[AWAY]),
        CheckContext(preloads={AWAY: PreloadFacts(missing="Check the path.")}),
        "warning",
        "/preload_adapters/0/adapter_model_id",
        "Check the path.",
        None,
    ),
    "name-contained": (
        GOOD.replace(order=["adapter_1", "adapter_10"]),
        CheckContext(),
        "info",
        "/order",
        "adapter_1 in adapter_10",
        None,
    ),
    "name-path": (GOOD.replace(order=["../one"]), CheckContext(), "warning", "/order/0", "../one", None),
    "preload-name-empty": (
        GOOD.replace(preload_adapters=[PreloadAdapter("", "org/nice")]),
        CheckContext(),
        "error",
        "/preload_adapters/0/name",
        "without a name",
        {"preload_adapters": [PreloadAdapter("nice", "org/nice")]},
    ),
    "preload-id-empty": (
        GOOD.replace(preload_adapters=[PreloadAdapter("n", "")]),
        CheckContext(),
        "error",
        "/preload_adapters/0/adapter_model_id",
        "'n'",
        None,
    ),
    "preload-duplicate": (
        GOOD.replace(preload_adapters=[PreloadAdapter("n", "i"), PreloadAdapter("n", "i")]),
        CheckContext(),
        "error",
        "/preload_adapters/1/name",
        "share a name: n",
        {"preload_adapters": [PreloadAdapter("n", "i")]},
    ),
    "preload-ignored": (
        GOOD.replace(preload_adapters=[PreloadAdapter("n", "i")]),
        XLORA,
        "info",
        "/preload_adapters",
        "are for LoRA",
        None,
    ),
    "config-unsupported": (
        GOOD,
        CheckContext(config={"architectures": ["Mamba"]}),
        "warning",
        "/layers",
        "'Mamba' is not supported",
        None,
    ),
    "layers-missing": (
        GOOD.replace(layers=None),
        XLORA,
        "error",
        "/layers",
        "X-LoRA needs layers",
        {"layers": layers(*PATHS)},
    ),
    "layers-empty": (
        GOOD.replace(layers={}),
        XLORA,
        "error",
        "/layers",
        "X-LoRA needs layers",
        {"layers": layers(*PATHS)},
    ),
    "layer-index-duplicate": (
        GOOD.replace(layers={Q0: 0, V0: 1, Q1: 1, V1: 3}),
        XLORA,
        "error",
        f"/layers/{V0}",
        f"2 layers share an index with another: 1 ({V0}), 1 ({Q1})",
        {"layers": layers(*PATHS)},
    ),
    "layer-index-gap": (
        GOOD.replace(layers={Q0: 0, V0: 1, Q1: 2, V1: 7}),
        CheckContext(),
        "error",
        f"/layers/{V1}",
        f"not 0 to 3: 7 ({V1})",
        {"layers": layers(*PATHS)},
    ),
    "layer-not-in-model": (
        GOOD.replace(layers=layers(Q0, V0, Q1, f"base_model.model.{V1}")),
        CheckContext(config=LLAMA),
        "error",
        f"/layers/base_model.model.{V1}",
        f"Did you mean '{V1}'?",
        {"layers": layers(*PATHS)},
    ),
    "layer-order": (
        GOOD.replace(layers={V0: 0, Q0: 1, Q1: 2, V1: 3}),
        XLORA,
        "warning",
        f"/layers/{Q0}",
        "not numbered in the model's own order",
        {"layers": layers(*PATHS)},
    ),
    "layer-missing": (
        GOOD.replace(layers=layers(Q0, V0, Q1)),
        XLORA,
        "error",
        "/layers",
        f"1 module adapted by one, two missing from layers: {V1}",
        {"layers": layers(*PATHS)},
    ),
    "layer-unadapted": (
        GOOD.replace(layers=layers(*PATHS, "lm_head")),
        replace(XLORA, xlora=None, mode="xlora"),
        "warning",
        "/layers/lm_head",
        "No adapter has weights for 1 layer: lm_head",
        {"layers": layers(*PATHS)},
    ),
    "adapter-foreign": (
        GOOD,
        replace(XLORA, adapter_modules={"one": MODULES, "two": MODULES | {"model.layers.9.self_attn.q_proj"}}),
        "error",
        "/order",
        "two adapt modules that the model does not have: model.layers.9.self_attn.q_proj",
        None,
    ),
    "classifier-outputs": (
        GOOD.replace(layers=layers(Q0, V0, Q1)),
        XLORA,
        "error",
        "/layers",
        "has 8 outputs, the file asks for 6 (2 adapters x 3 layers). Probably layers should hold 4 modules",
        {"layers": layers(*PATHS)},
    ),
    "quantized-layer": (
        OrderingFile("b", ["one"], layers("model.layers.0.self_attn.dense", "lm_head")),
        CheckContext(config={"architectures": ["PhiForCausalLM"], "num_hidden_layers": 1}, quantized="bnb"),
        "error",
        "/layers/model.layers.0.self_attn.dense",
        "cannot sit on self_attn.dense. Supported are self_attn.q_proj",
        None,
    ),
    "quantized-4bit": (
        GOOD,
        replace(XLORA, quantized="gguf", bits=4),
        "warning",
        "/base_model_id",
        "8 bits keep it",
        None,
    ),
}


def found(ordering: OrderingFile, context: CheckContext, rule: str) -> list[Finding]:
    return [finding for finding in check(ordering, context) if finding.rule == rule]


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "structure"])
def test_rule(rule: str) -> None:
    ordering, context, severity, place, message, changes = CASES[rule]
    (finding,) = found(ordering, context, rule)
    assert finding.severity == severity
    assert finding.place == place
    assert finding.places[:1] in ((), (place,))
    assert message in finding.message
    if changes is None:
        assert finding.fix is None
    else:
        assert finding.fix is not None
        assert finding.fix.changes == changes
        assert finding.fix.title
        assert not found(finding.fix.apply(ordering), context, rule)
        fixed, applied = build.fix(ordering, context, rules=[rule])
        assert rule in [item.rule for item in applied]
        assert not found(fixed, context, rule)


def test_a_good_file_has_no_findings() -> None:
    assert check(GOOD, XLORA) == []
    assert check(GOOD, replace(XLORA, quantized="bnb", bits=8)) == []
    assert check(GOOD) == []


def test_names_that_contain_each_other_resolve_exactly() -> None:
    """A file with adapter_1 and adapter_10 has no error and no warning, and the one that is missing is named."""
    names = ["adapter_1", "adapter_10", "adapter_100"]
    context = CheckContext(config=LLAMA, adapter_modules=dict.fromkeys(names, MODULES), mode="xlora")
    assert {finding.severity for finding in check(GOOD.replace(order=names), context)} == {"info"}
    context = replace(context, adapter_modules=dict.fromkeys(names[1:], MODULES))
    (finding,) = found(GOOD.replace(order=names), context, "order-unknown")
    assert finding.place == "/order/0"
    assert finding.fix is None  # another number is another adapter, not a slip of the pen


@pytest.mark.parametrize(
    ("outputs", "layerwise", "cause"),
    [
        (2, True, "the file asks for 8 (2 adapters x 4 layers). It is probably not layerwise"),
        (12, True, "the file asks for 8 (2 adapters x 4 layers). Probably order should name 3 adapters, or layers"),
        (14, True, "Probably layers should hold 7 modules (other target modules than in training?)."),
        (13, True, "The file probably belongs to another checkpoint."),
        (8, False, "has 8 outputs, the file asks for 2 (one an adapter). It is probably layerwise"),
        (3, False, "order should name 3 adapters"),
    ],
)
def test_classifier_messages_name_both_numbers_and_the_likely_cause(outputs: int, layerwise: bool, cause: str) -> None:
    context = replace(XLORA, xlora=ClassifierFacts(layerwise, outputs))
    (finding,) = found(GOOD, context, "classifier-outputs")
    assert cause in finding.message
    assert f"{outputs} outputs" in finding.message


def test_a_classifier_that_is_not_layerwise_needs_no_layers_to_be_counted() -> None:
    context = replace(XLORA, xlora=ClassifierFacts(False, 2))
    assert check(GOOD, context) == []


@pytest.mark.parametrize(
    ("named", "loaded", "same"),
    [
        ("HuggingFaceH4/zephyr-7b-beta", "HuggingFaceH4/zephyr-7b-beta/", True),
        ("HuggingFaceH4/zephyr-7b-beta", "/models/Zephyr-7B-beta", True),
        ("HuggingFaceH4/zephyr-7b-beta", r"C:\models\zephyr-7b-beta", True),
        ("HuggingFaceH4/zephyr-7b-beta", "/c/hub/models--HuggingFaceH4--zephyr-7b-beta/snapshots/0123abc", True),
        ("HuggingFaceH4/zephyr-7b-beta", "/models/zephyr-7b-beta.Q4_0.gguf", True),
        ("HuggingFaceH4/zephyr-7b-beta", "/models/zephyr-7b-beta2.Q4_0.gguf", False),
        ("HuggingFaceH4/zephyr-7b-beta", "mistralai/Mistral-7B-v0.1", False),
        ("HuggingFaceH4/zephyr-7b-beta", "/models/mistral", False),
        ("/a/b", "/c/b", True),
    ],
)
def test_bases_are_compared_by_their_last_part(named: str, loaded: str, same: bool) -> None:
    assert same_base(named, loaded) is same
    assert (
        bool(found(GOOD.replace(base_model_id=named), CheckContext(base_model_id=loaded), "base-mismatch")) is not same
    )


def test_a_fix_puts_no_local_path_into_a_file() -> None:
    cached = "/c/hub/models--org--other/snapshots/0123abc"
    (finding,) = found(GOOD, CheckContext(base_model_id=cached), "base-mismatch")
    assert finding.fix is not None
    assert finding.fix.changes == {"base_model_id": "org/other"}
    (finding,) = found(GOOD, CheckContext(base_model_id="/models/other"), "base-mismatch")
    assert finding.fix is None


def test_a_local_copy_that_knows_its_hub_id_is_no_mismatch() -> None:
    config = {**LLAMA, "_name_or_path": GOOD.base_model_id}
    assert not found(GOOD, CheckContext(base_model_id="/models/other", config=config), "base-mismatch")
    config["_name_or_path"] = "somebody/else"
    assert found(GOOD, CheckContext(base_model_id="/models/other", config=config), "base-mismatch")


def test_a_file_without_base_loads_when_the_base_is_given() -> None:
    """The first published X-LoRA files have no base_model_id."""
    ordering = OrderingFile.parse(json.dumps({"order": ["one", "two"], "layers": number_layers(PATHS)}))
    (finding,) = check(ordering, XLORA)
    assert (finding.rule, finding.severity) == ("base-missing", "warning")
    raise_errors([finding], "o.json")
    fixed, _ = build.fix(ordering, XLORA)
    assert check(fixed, XLORA) == []


def test_lora_files_are_checked_more_mildly() -> None:
    context = CheckContext(config=LLAMA, adapter_modules={"one": MODULES}, mode="lora")
    ordering = OrderingFile("b", ["one", "pre"], {Q0: 5}, [PreloadAdapter("pre", "x")])
    assert "error" not in {finding.severity for finding in check(ordering, context)}
    (finding,) = found(ordering.replace(order=["three"]), context, "order-unknown")
    assert "There are one, pre." in finding.message
    assert check(OrderingFile("b", ["one"]), context) == []


def test_quantized_phi3_and_unknown_models() -> None:
    modules = linear_modules(PHI3)
    ordering = OrderingFile("b", ["one"], number_layers(modules))
    assert not found(ordering, CheckContext(config=PHI3, quantized="gguf"), "quantized-layer")
    assert not found(ordering, CheckContext(quantized="gguf"), "quantized-layer")
    (finding,) = found(ordering, CheckContext(config=LLAMA, quantized="gguf"), "quantized-layer")
    assert "self_attn.qkv_proj" in finding.message
    # LoRA files often have no layers: the adapters' own modules count then
    context = CheckContext(quantized="bnb", adapter_modules={"one": frozenset({"model.embed_tokens"})}, mode="lora")
    (finding,) = found(OrderingFile("b", ["one"]), context, "quantized-layer")
    assert "model.embed_tokens" in finding.message


def test_errors_come_first_and_are_raised_with_the_number_of_the_others() -> None:
    ordering = OrderingFile("", ["one", "one", ""], {Q0: 3})
    findings = check(ordering, XLORA)
    ranks = ["error", "warning", "info"]
    assert [finding.severity for finding in findings] == sorted((f.severity for f in findings), key=ranks.index)
    errors = [finding for finding in findings if finding.severity == "error"]
    with pytest.raises(OrderingError, match=f"There are {len(errors) - 1} more errors") as caught:
        raise_errors(findings, "o.json")
    assert caught.value.file == "o.json"
    assert errors[0].rule in (caught.value.field or "")
    raise_errors([], "o.json")


def test_fixes_follow_each_other() -> None:
    broken = GOOD.replace(order=["one", "", "TWO", "one"], layers={V0: 0, Q0: 0, "base_model.model.lm_head": 9})
    fixed, applied = build.fix(broken, XLORA)
    assert fixed == GOOD
    assert len(applied) >= 4
    assert build.fix(fixed, XLORA) == (fixed, [])


NAMES = st.sampled_from(["one", "two", "tw o", "One", "", " ", "../x", "one\n", "\U0001f600", "1", "10"])
SOME_PATHS = st.sampled_from(
    [*linear_modules(LLAMA), "", "base_model.model.lm_head", "model.layers.0.self_attn.q", "/~"]
)
ANY = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
CONTEXTS = st.builds(
    CheckContext,
    base_model_id=st.none() | st.sampled_from(["", "org/base", "/x/", "a.gguf", "models--a--b", "\\"]),
    config=st.none()
    | st.just(LLAMA)
    | st.just(PHI3)
    | st.dictionaries(st.sampled_from(["architectures", "model_type", "num_hidden_layers"]), ANY),
    adapter_modules=st.none() | st.dictionaries(NAMES, st.frozensets(SOME_PATHS, max_size=5), max_size=4),
    xlora=st.none()
    | st.builds(ClassifierFacts, st.booleans(), st.integers(0, 40), st.none() | st.lists(NAMES, max_size=3).map(tuple)),
    mode=st.sampled_from([None, "lora", "xlora"]),
    quantized=st.sampled_from([None, "bnb", "gguf"]),
    bits=st.none() | st.integers(0, 16),
)
EDITS = st.fixed_dictionaries(
    {},
    optional={
        "base_model_id": st.sampled_from(["", "org/base", "x", "./", "\\\\"]),
        "order": st.none() | st.lists(NAMES, max_size=5),
        "layers": st.none() | st.dictionaries(SOME_PATHS, st.integers(-2, 12), max_size=8),
        "preload_adapters": st.none() | st.lists(st.builds(PreloadAdapter, NAMES, NAMES), max_size=4),
    },
)


@given(changes=EDITS, context=CONTEXTS, unknown=st.sampled_from(["", "orders", "layer", "note"]))
def test_the_checker_never_raises_and_edits_survive(
    changes: dict[str, Any], context: CheckContext, unknown: str
) -> None:
    ordering = OrderingFile.parse(json.dumps({"base_model_id": "org/base", unknown: 1, "order": ["one"]}, indent=1))
    ordering = ordering.replace(**changes)
    assert OrderingFile.parse(ordering.dumps()) == ordering
    for finding in check(ordering, context):
        assert finding.rule in RULES
        assert finding.place.startswith("/")
        assert finding.message.endswith((".", "?", ")"))
        if finding.fix is not None:
            fixed = finding.fix.apply(ordering)
            assert fixed != ordering
            assert OrderingFile.parse(fixed.dumps()) == fixed


@given(changes=EDITS, context=CONTEXTS)
def test_fixing_ends(changes: dict[str, Any], context: CheckContext) -> None:
    ordering, applied = build.fix(GOOD.replace(**changes), context)
    assert len(applied) < 20
    assert all(finding.fix is None for finding in check(ordering, context)) or applied


def test_a_big_file_is_checked_quickly() -> None:
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1429}
    paths = linear_modules(config)[:10_000]
    names = [f"adapter_{n}" for n in range(500)]
    ordering = OrderingFile("org/base", names, number_layers(reversed(paths)))
    modules = frozenset(paths)
    context = CheckContext(config=config, adapter_modules=dict.fromkeys(names, modules), mode="xlora")
    with processor_time(5.0):
        findings = check(ordering, context)
    assert {finding.rule for finding in findings} == {"name-contained", "layer-order"}
