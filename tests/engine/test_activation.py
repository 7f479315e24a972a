"""Which adapters become active, and what is said when none is."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from loradesk_engine.activation import active_weights, none_active
from loradesk_engine.cli import main
from loradesk_engine.errors import AdapterError

NAMES = ("one", "two", "three")


def test_zeros_are_left_out_and_the_order_is_the_models() -> None:
    weights = active_weights({"three": 2, "two": 0.0, "one": -0.5}, NAMES)
    assert list(weights.items()) == [("one", -0.5), ("three", 2.0)]


@pytest.mark.parametrize("weight", [math.nan, math.inf, True, "1", None, 100.5])
def test_what_is_no_weight_is_refused(weight) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AdapterError) as refused:
        active_weights({"one": weight}, NAMES)
    assert refused.value.field == "one"


def test_unknown_names_are_refused_also_at_weight_zero() -> None:
    with pytest.raises(AdapterError) as refused:
        active_weights({"four": 0.0}, NAMES)
    assert refused.value.remedy == "Loaded: one, two, three."
    with pytest.raises(AdapterError, match="No adapters are loaded"):
        active_weights({"one": 1.0}, ())


@pytest.mark.parametrize(
    ("names", "active", "text"),
    [
        ((), {}, None),
        (NAMES, {"two": 1.0}, None),
        (("one",), {}, "1 adapter loaded, not active: one."),
        (("one", "two"), {}, "2 adapters loaded, none active: one, two."),
    ],
)
def test_the_notice(names: tuple[str, ...], active: dict[str, float], text: str | None) -> None:
    assert none_active(names, active) == text


@pytest.mark.parametrize(
    ("words", "said"),
    [((), True), (("--activate", "arithmetic"), False), (("--activate", ""), False)],
    ids=["nothing asked for", "one activated", "none on purpose"],
)
def test_the_terminal_says_once_that_none_is_active(capsys: pytest.CaptureFixture[str], words, said: bool) -> None:  # type: ignore[no-untyped-def]
    main(["chat", "--demo", "--mode", "lora", "--prompt", "Hi", "--max-tokens", "1", *words])
    notice = "Note: 4 adapters loaded, none active: arithmetic, capitals, json, bard. Activate some with --activate"
    assert capsys.readouterr().err.count(notice) == said


def test_one_adapter_is_active_at_once_and_nothing_is_said(zoo, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    name, folder = next(iter(zoo.adapters.items()))
    options = ["--base", str(zoo.base), "--adapter", f"{name}={Path(folder)}"]
    main(["chat", *options, "--prompt", "Hi", "--max-tokens", "1"])
    assert "active" not in capsys.readouterr().err
