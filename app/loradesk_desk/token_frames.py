"""Joins the token events of one frame, so that a window is painted once for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # events.py imports numpy, which slows down the start of a window
    from loradesk_engine.events import TokensGenerated

Group = list["TokensGenerated"]


def join_tokens(events: Group) -> Group:
    """Join the token events of one request into as few as their scalings allow: one, unless rows are missing."""
    groups: list[Group] = []
    for event in events:
        if groups and _continues(groups[-1], event):
            groups[-1].append(event)
        else:
            groups.append([event])
    return [group[0] if len(group) == 1 else _join(group) for group in groups]


def _join(group: Group) -> TokensGenerated:
    from loradesk_engine.events import TokensGenerated

    return TokensGenerated(**{field.name: JOINS[field.name](group) for field in fields(TokensGenerated)})


def _concatenated(name: str) -> Callable[[Group], Any]:
    return lambda group: tuple(chain.from_iterable(getattr(event, name) for event in group))


def _scalings(group: Group) -> Any:
    import numpy as np

    rows = [event.scalings for event in group if event.scalings is not None]
    return np.concatenate(rows) if rows else None


def _scalings_start(group: Group) -> int:
    return next((event.scalings_start for event in group if event.scalings is not None), 0)


def _newest_look_ahead(group: Group) -> Any:
    """Its counts are of the whole answer so far, so the newest has all of them."""
    return next((event.look_ahead for event in reversed(group) if event.look_ahead is not None), None)


# How each field of the event is joined. A field that is missing here is an error, not a loss.
JOINS: dict[str, Callable[[Group], Any]] = {
    "request_id": lambda group: group[0].request_id,
    "text": lambda group: "".join(event.text for event in group),
    "token_ids": _concatenated("token_ids"),
    "token_texts": _concatenated("token_texts"),
    "scalings": _scalings,
    "scaling_token_texts": _concatenated("scaling_token_texts"),
    "scalings_start": _scalings_start,
    "logprobs": _concatenated("logprobs"),
    "look_ahead": _newest_look_ahead,
}


def _continues(group: Group, event: TokensGenerated) -> bool:
    """Whether an event's scalings begin where those of the group end."""
    if event.scalings is None:
        return True
    last = next((earlier for earlier in reversed(group) if earlier.scalings is not None), None)
    if last is None or last.scalings is None:
        return True
    fits = last.scalings.shape[1:] == event.scalings.shape[1:]
    return fits and last.scalings_start + len(last.scalings) == event.scalings_start
