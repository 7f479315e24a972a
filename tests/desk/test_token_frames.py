"""Token events of one frame are joined without a loss."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from loradesk_desk.token_frames import join_tokens
from loradesk_engine.events import LookAhead, TokenLogprob, TokensGenerated

FIELDS = tuple(field.name for field in fields(TokensGenerated))


def rows(start: int, count: int, layers: int = 3) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.float32).repeat(layers * 2).reshape(count, layers, 2)


def event(start: int, text: str, **changes) -> TokensGenerated:
    values = {
        "request_id": "r",
        "text": text,
        "token_ids": (start,),
        "token_texts": (text,),
        "scalings": rows(start, 2),
        "scaling_token_texts": (f"{text}0", f"{text}1"),
        "scalings_start": start,
        "logprobs": (TokenLogprob(start, -0.5, text.encode()),),
        "look_ahead": LookAhead(start, 1),
    }
    return TokensGenerated(**(values | changes))


PARTS = (event(4, "a"), event(6, "b"), event(8, "c"))
# What three events come to. A field that is added to the event needs its line here.
WANTED = {
    "request_id": "r",
    "text": "abc",
    "token_ids": (4, 6, 8),
    "token_texts": ("a", "b", "c"),
    "scalings": rows(4, 6),
    "scaling_token_texts": ("a0", "a1", "b0", "b1", "c0", "c1"),
    "scalings_start": 4,
    "logprobs": tuple(TokenLogprob(token, -0.5, text.encode()) for token, text in ((4, "a"), (6, "b"), (8, "c"))),
    "look_ahead": LookAhead(8, 1),
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_joined(name: str):
    (joined,) = join_tokens(list(PARTS))
    np.testing.assert_equal(getattr(joined, name), WANTED[name])


def test_no_field_is_left_at_its_default_in_this_test():
    for part in PARTS:
        for field in fields(TokensGenerated):
            assert getattr(part, field.name) is not field.default, field.name


def test_scalings_with_a_gap_are_not_joined():
    first, second = event(0, "a"), event(5, "b")
    assert join_tokens([first, second]) == [first, second]


def test_scalings_of_other_layers_are_not_joined():
    first, second = event(0, "a"), event(2, "b", scalings=rows(2, 2, layers=4))
    assert join_tokens([first, second]) == [first, second]


def test_events_without_scalings_join_those_that_have_some():
    bare = TokensGenerated("r", "x", (9,), ("x",))
    (joined,) = join_tokens([bare, event(3, "a"), bare])
    assert joined.text == "xax"
    assert joined.scalings_start == 3
    assert joined.scalings.shape == (2, 3, 2)
    assert joined.look_ahead == LookAhead(3, 1)
