"""How many guesses look-ahead checks: the policy, against passes counted one by one."""

from __future__ import annotations

import random

import pytest

from loradesk_engine.generation.guesses import (
    FIRST_SHARES,
    GRAPH_ROW_COST,
    MOST_GUESSES,
    ROW_COST,
    after_token,
    worthwhile,
)


def time_of(shares: tuple[float, ...], guesses: int, sequences: int, row_cost: float) -> float:
    """Passes' time for each token of `sequences` that decode together, played with dice."""
    dice = random.Random(1)
    ready = [True] * sequences
    tokens, seconds = 0, 0.0
    for _ in range(4000):
        seconds += 1 + row_cost * sum(1 + guesses if one else 1 for one in ready)
        for number, one in enumerate(ready):
            tokens += one
            ready[number] = dice.random() < sum(shares[:guesses]) if one else True
    return seconds / tokens


@pytest.mark.parametrize("row_cost", [ROW_COST, GRAPH_ROW_COST])
@pytest.mark.parametrize("sequences", [1, 4, 15])
@pytest.mark.parametrize(
    "shares", [(0.9, 0.06, 0.02), (0.6, 0.15, 0.07), (0.3, 0.15, 0.1), (0.05, 0.03, 0.02), (1, 0, 0)]
)
def test_the_chosen_count_is_about_as_fast_as_any(shares: tuple[float, ...], sequences: int, row_cost: float) -> None:
    chosen = worthwhile([shares] * sequences, MOST_GUESSES, row_cost, current=0)
    times = [time_of(shares, count, sequences, row_cost) for count in range(MOST_GUESSES + 1)]
    assert times[chosen] < 1.06 * min(times)


def test_a_count_that_is_nearly_as_good_stays() -> None:
    shares = [(0.8, 0.1, 0.012)]
    assert worthwhile(shares, 3, GRAPH_ROW_COST, current=2) == 2
    assert worthwhile(shares, 3, GRAPH_ROW_COST, current=3) == 3
    assert worthwhile(shares, 3, GRAPH_ROW_COST, current=0) != 0


def test_no_guess_is_checked_while_they_are_wrong_and_rows_cost() -> None:
    shares = list(FIRST_SHARES)
    for _ in range(30):
        shares = after_token(shares, None)
    assert worthwhile([shares], 1, ROW_COST, current=1) == 0
    for _ in range(10):
        shares = after_token(shares, 0)
    assert worthwhile([shares], 1, ROW_COST, current=0) == 1


def test_shares_follow_the_ranks() -> None:
    shares = list(FIRST_SHARES)
    for number in range(400):
        shares = after_token(shares, (0, 0, 0, 1, None)[number % 5])
    assert shares == pytest.approx([0.6, 0.2, 0.0], abs=0.08)
