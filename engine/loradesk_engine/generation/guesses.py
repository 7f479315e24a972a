"""How many of the base model's guesses X-LoRA's look-ahead checks at once.

Plain numbers: the policy is tested without a model.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_GUESSES = 3
MEMORY = 0.1  # weight of the latest guess in the running shares of right ones
FIRST_SHARES = (0.8, 0.1, 0.05)  # of right guesses by rank, before any was seen
ROW_COST = 0.2  # of a pass, by which each of its rows makes it longer: on the CPU, and where experts are chosen by row
GRAPH_ROW_COST = 0.0065  # the same of a captured graph's
STEADY = 1.03  # times the shortest time: a count within that is kept


def after_token(shares: Sequence[float], rank: int | None) -> list[float]:
    """The running shares of right guesses by rank, after a token that was the guess of this rank, or none of them."""
    return [share + ((number == rank) - share) * MEMORY for number, share in enumerate(shares)]


def worthwhile(shares: Sequence[Sequence[float]], most: int, row_cost: float, current: int) -> int:
    """The number of guesses for each sequence with which most tokens are expected in a time.

    Every guess that is checked is a row more in the pass. A token whose scalings were not ready costs its sequence one
    pass more, with a single row (graphs have spare rows in it, which cost little).

    Args:
        shares: of each sequence, how often the guess of each rank is right.
        most: of guesses for each sequence.
        row_cost: of a pass, by which each row makes it longer.
        current: the number in use; it stays unless another one is clearly better.
    """

    def time_of_a_token(count: int) -> float:
        missed = sum(max(0.0, 1 - sum(each[:count])) for each in shares) / len(shares)
        rows = len(shares) * (1 + count / (1 + missed))
        return (1 + missed) * (1 + row_cost * rows)

    times = [time_of_a_token(count) for count in range(most + 1)]
    best = min(times)
    return current if current <= most and times[current] <= STEADY * best else times.index(best)
