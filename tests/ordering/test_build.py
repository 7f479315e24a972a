"""Creating, renaming, preloading and comparing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradesk_engine.errors import ConfigError, OrderingError
from loradesk_engine.ordering import build
from loradesk_engine.ordering.check import CheckContext, ClassifierFacts, check
from loradesk_engine.ordering.ready import READY, ready_file
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

FIVE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
Config = dict[str, Any]


def published(names: int, blocks: int, parts: list[str], base: str | None) -> str:
    """The two published files, in the layout of Python's json.dumps in which they were made."""
    layers = [f"model.layers.{block}.{part}" for block in range(blocks) for part in parts]
    data: dict[str, Any] = {"order": [f"adapter_{n + 1}" for n in range(names)]}
    data["layers"] = {path: index for index, path in enumerate(layers)}
    if base is not None:
        data["base_model_id"] = base
    return json.dumps(data)


ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
ZEPHYR = published(9, 32, [*ATTENTION, "mlp.gate_proj"], "HuggingFaceH4/zephyr-7b-beta")
ZEPHYR_WITHOUT_BASE = published(9, 32, [*ATTENTION, "mlp.gate_proj"], None)
GEMMA = published(4, 28, [*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"], "google/gemma-7b-it")


@pytest.mark.parametrize(
    ("text", "layers", "config", "base"),
    [
        (ZEPHYR, 160, "mistral_config", "HuggingFaceH4/zephyr-7b-beta"),
        (ZEPHYR_WITHOUT_BASE, 160, "mistral_config", None),
        (GEMMA, 196, "gemma_config", "google/gemma-7b-it"),
    ],
)
def test_published_files(text: str, layers: int, config: str, base: str | None, request: Any, tmp_path: Any) -> None:
    """They open, are clean beside their base, and are the same bytes when saved unchanged."""
    path = tmp_path / "o.json"
    path.write_text(text)
    ordering = OrderingFile.read(path)
    assert len(ordering.layers or ()) == layers
    adapters = {name: frozenset(ordering.layers or ()) for name in ordering.order or ()}
    facts = ClassifierFacts(True, layers * len(adapters))
    context = CheckContext(str(path), base, request.getfixturevalue(config), adapters, facts, "xlora")
    findings = check(ordering, context)
    assert [finding.rule for finding in findings] == ([] if base else ["base-missing"])
    ordering.write(path)
    assert path.read_text() == text


def test_the_files_that_ship_are_made_by_create(mistral_config: Config, gemma_config: Config) -> None:
    """And they say the same as the published ones."""
    made = {
        "lamm-mit/x-lora": build.create(
            "HuggingFaceH4/zephyr-7b-beta", mistral_config, FIVE, order=[f"adapter_{n}" for n in range(1, 10)]
        ),
        "lamm-mit/x-lora-gemma-7b": build.create(
            "google/gemma-7b-it", gemma_config, "all-linear", order=[f"adapter_{n}" for n in range(1, 5)]
        ),
    }
    assert set(made) == set(READY)
    for (xlora, ordering), text in zip(made.items(), (ZEPHYR, GEMMA), strict=True):
        path = ready_file(xlora)
        assert path is not None
        assert path.read_text(encoding="utf-8") == ordering.dumps()
        assert build.diff(OrderingFile.read(path), OrderingFile.parse(text)) == []
        assert list(ordering.layers or ()) == list(OrderingFile.parse(text).layers or ())
    assert ready_file("lamm-mit/other") is None


def test_create_from_modules(small_config: Config) -> None:
    modules = {"lm_head", "model.layers.1.self_attn.v_proj", "model.layers.0.mlp.down_proj"}
    ordering = build.create_from_modules("b", small_config, modules, order=["x"])
    assert dict(ordering.layers or {}) == {
        "model.layers.0.mlp.down_proj": 0,
        "model.layers.1.self_attn.v_proj": 1,
        "lm_head": 2,
    }
    with pytest.raises(OrderingError, match=r"b does not have: model\.layers\.7\.mlp\.fc1"):
        build.create_from_modules("b", small_config, {"model.layers.7.mlp.fc1"})
    with pytest.raises(ConfigError):
        build.create_from_modules("b", {}, modules)


def test_regenerate_keeps_everything_else(small_config: Config) -> None:
    text = '{"note": 1.50, "layers": {"x": 3}, "base_model_id": "b"}'
    ordering = build.regenerate(OrderingFile.parse(text), small_config, {"lm_head"})
    assert ordering.dumps() == text.replace('{"x": 3}', '{"lm_head": 0}')


def test_set_order(small: OrderingFile) -> None:
    assert build.set_order(small, ["two", "one"]).order == ("two", "one")
    assert build.set_order(small, None).order is None
    assert build.set_order(small, ["a"]).layers == small.layers
    for names in (["a", "a"], ["a", ""]):
        with pytest.raises(OrderingError):
            build.set_order(small, names)


def test_rename(small: OrderingFile) -> None:
    ordering = small.replace(preload_adapters=[PreloadAdapter("one", "x"), PreloadAdapter("three", "y")])
    renamed = build.rename(ordering, {"one": "two", "two": "one"})
    assert renamed.order == ("two", "one")
    assert renamed.preload_adapters == (PreloadAdapter("two", "x"), PreloadAdapter("three", "y"))
    assert build.rename(ordering, {}) == ordering
    assert build.rename(ordering, {"three": "3"}).order == ordering.order
    with pytest.raises(OrderingError, match=r"no adapter 'ones'\. Did you mean 'one'\?"):
        build.rename(ordering, {"ones": "x"})
    with pytest.raises(OrderingError, match="'three' is given twice"):
        build.rename(ordering, {"one": "three"})
    with pytest.raises(OrderingError, match="empty"):
        build.rename(ordering, {"one": " "})


def test_preload(small: OrderingFile) -> None:
    one, two = PreloadAdapter("p", "x"), PreloadAdapter("q", "y")
    ordering = build.preload(small, [one, two])
    assert ordering.preload_adapters == (one, two)
    changed = build.change_preload(ordering, "p", PreloadAdapter("r", "z"))
    assert changed.preload_adapters == (PreloadAdapter("r", "z"), two)
    assert build.remove_preload(ordering, "p").preload_adapters == (two,)
    assert build.remove_preload(build.remove_preload(ordering, "p"), "q") == small
    for wrong in (
        lambda: build.preload(ordering, [PreloadAdapter("p", "other")]),
        lambda: build.preload(ordering, [PreloadAdapter("", "other")]),
        lambda: build.preload(ordering, [PreloadAdapter("new", "")]),
        lambda: build.change_preload(ordering, "p", two),
        lambda: build.change_preload(ordering, "none", one),
        lambda: build.remove_preload(ordering, "none"),
        lambda: build.remove_preload(small, "p"),
    ):
        with pytest.raises(OrderingError):
            wrong()


def test_diff() -> None:
    first = OrderingFile.parse(
        '{"base_model_id": "a", "order": ["x", "y", "z"], "layers": {"m": 0, "n": 1}, "old": 1,'
        ' "preload_adapters": [{"name": "p", "adapter_model_id": "i"}]}'
    )
    second = OrderingFile.parse(
        '{"new": null, "layers": {"n": 0, "o/o": 1}, "order": ["z", "y", "w"], "base_model_id": "b",'
        ' "preload_adapters": [{"name": "p", "adapter_model_id": "j"}]}'
    )
    assert [str(change) for change in build.diff(first, second)] == [
        '~ /base_model_id: "a" -> "b"',
        '- /order/0: "x"',
        "~ /order/z: 2 -> 0 (moved)",
        '+ /order/2: "w"',
        "- /layers/m: 0",
        "~ /layers/n: 1 -> 0",
        "+ /layers/o~1o: 1",
        '~ /preload_adapters/p: {"name": "p", "adapter_model_id": "i"} -> {"name": "p", "adapter_model_id": "j"}',
        "- /old: 1",
    ]
    assert build.diff(first, first) == []
    assert [str(c) for c in build.diff(OrderingFile("b"), OrderingFile("b", [], {}))] == [
        "+ /order: []",
        "+ /layers: {}",
    ]
    assert [str(c) for c in build.diff(OrderingFile("b", ["a"]), OrderingFile("b"))] == ['- /order/0: "a"']


NAMES = st.sampled_from(["a", "b", "c", "d", ""])
FILES = st.builds(
    OrderingFile,
    st.sampled_from(["x", "y"]),
    st.none() | st.lists(NAMES, max_size=4),
    st.none() | st.dictionaries(NAMES, st.integers(0, 3), max_size=3),
    st.none() | st.lists(st.builds(PreloadAdapter, NAMES, NAMES), max_size=3),
)


@given(first=FILES, second=FILES)
def test_no_differences_means_the_same_content(first: OrderingFile, second: OrderingFile) -> None:
    def content(ordering: OrderingFile) -> Any:
        preloads = ordering.preload_adapters
        by_name = None if preloads is None else sorted(preloads, key=lambda adapter: adapter.name)
        return ordering.base_model_id, ordering.order, ordering.layers, by_name

    assert (build.diff(first, second) == []) == (content(first) == content(second))
