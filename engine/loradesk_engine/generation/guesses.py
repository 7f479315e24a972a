"""How many of the base model's guesses X-LoRA's look-ahead checks in a pass.

Plain numbers, so the policy is tested without a model.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_GUESSES = 3
MEMORY = 0.1  # weight of the latest token in the running shares
FIRST_SHARES = (0.8, 0.1, 0.05)  # assumed share of right guesses by rank before any was checked
ROW_COST = 0.2  # extra time of a pass for each row, as a share of the pass: on the CPU and with mixtures of experts
GRAPH_ROW_COST = 0.0065  # the same for a captured graph
STEADY = 1.03  # the current number stays while its time is within this factor of the best


def after_token(shares: Sequence[float], rank: int | None) -> list[float]:
    """Update the running shares by rank after a token that was the guess of rank `rank`, or no guess (None)."""
    return [share + ((number == rank) - share) * MEMORY for number, share in enumerate(shares)]


def worthwhile(shares: Sequence[Sequence[float]], most: int, row_cost: float, current: int) -> int:
    """The number of guesses for each sequence that gives the highest expected token rate.

    Every checked guess adds a row to the pass. A token whose scalings were not ready costs its sequence one more pass
    with a single row (graphs have spare rows in it, which cost little).

    Args:
        shares: for each sequence, how often the guess of each rank is right.
        most: maximum number of guesses for each sequence.
        row_cost: extra time of a pass for each row, as a share of the pass.
        current: the number in use; it stays unless another is clearly better.
    """

    def seconds_per_token(count: int) -> float:
        missed = sum(max(0.0, 1 - sum(each[:count])) for each in shares) / len(shares)
        rows = len(shares) * (1 + count / (1 + missed))
        return (1 + missed) * (1 + row_cost * rows)

    times = [seconds_per_token(count) for count in range(most + 1)]
    best = min(times)
    return current if current <= most and times[current] <= STEADY * best else times.index(best)
