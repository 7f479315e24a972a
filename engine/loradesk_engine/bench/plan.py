"""What a run of the benchmark does: sizes, and the works by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from loradesk_engine.commands import AdapterMode
from loradesk_engine.errors import RequestError

DEFAULT_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")
NEW_TURN = 32  # tokens that a next turn adds to its history


@dataclass(frozen=True)
class Work:
    """One thing to measure.

    Attributes:
        adapters: how many are loaded, all of them active; None takes the plan's count for X-LoRA.
        batch: throughput of several sequences: `shared` (all with the same adapters), `own` (each with another one), or
            not measured.
        next_turn, activation: whether these are measured.
    """

    name: str
    title: str
    mode: AdapterMode = "lora"
    adapters: int | None = 0
    lookahead: bool = True
    non_granular: bool = False
    batch: Literal["shared", "own"] | None = None
    next_turn: bool = False
    activation: bool = False


WORKS = {
    work.name: work
    for work in (
        Work("base", "base model", "none", batch="shared", next_turn=True),
        Work("lora-1", "1 LoRA adapter", adapters=1, activation=True),
        Work("lora-9", "9 LoRA adapters", adapters=9, batch="shared", next_turn=True, activation=True),
        Work("lora-64", "64 LoRA adapters", adapters=64, batch="own", activation=True),
        Work("xlora-two-pass", "X-LoRA, two passes", "xlora", None, lookahead=False),
        Work("xlora", "X-LoRA, look-ahead", "xlora", None, batch="shared", next_turn=True),
        Work("xlora-non-granular", "X-LoRA, scalings frozen after the first token", "xlora", None, non_granular=True),
    )
}


@dataclass(frozen=True)
class Plan:
    """Sizes of a run.

    Attributes:
        context: prompt tokens.
        tokens: completion tokens of an answer; a peer that takes longer than `peer_seconds` for them gives fewer.
        runs: answers of each contender, after one to warm up.
        rank, targets: of the random adapters; `targets` are last parts of paths, empty for all linears but `lm_head`.
        xlora_adapters: experts of the random X-LoRA.
        hit_rate: share of right first guesses that X-LoRA's look-ahead is also measured at.
        batch_sizes: sequences at once.
        batch_context: their prompt tokens.
        histories: tokens of the turns before a next turn.
        peer_seconds: how long a peer may take for one work.
    """

    context: int = 512
    tokens: int = 64
    runs: int = 5
    rank: int = 16
    targets: tuple[str, ...] = DEFAULT_TARGETS
    xlora_adapters: int = 9
    hit_rate: float = 0.9
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    batch_context: int = 512
    histories: tuple[int, ...] = (256, 4096)
    peer_seconds: float = 40.0

    def __post_init__(self) -> None:
        for name, low in (("context", 2), ("tokens", 4), ("runs", 1), ("rank", 1), ("xlora_adapters", 1)):
            if getattr(self, name) < low:
                option = "--adapters-rank" if name == "rank" else f"--{name.replace('_', '-')}"
                raise RequestError(f"{getattr(self, name)} is too few.", field=option, remedy=f"Use {low} or more.")
        if not 0 < self.hit_rate < 1:
            raise RequestError(f"{self.hit_rate} is not a share.", field="--hit-rate", remedy="Use e.g. 0.9.")

    def quick(self) -> Plan:
        """The same in a few seconds, to see that it works; its figures mean little."""
        return replace(
            self,
            context=min(self.context, 32),
            tokens=min(self.tokens, 6),
            runs=min(self.runs, 2),
            batch_sizes=(1, 2),
            batch_context=min(self.batch_context, 8),
            histories=(32, 64),
            peer_seconds=min(self.peer_seconds, 2.0),
        )

    @property
    def reach(self) -> int:
        """Tokens that a sequence must be able to hold."""
        longest = max(self.context, self.batch_context, max(self.histories) + NEW_TURN)
        return longest + 4 * self.tokens + 128  # activation and throughput go on for some steps

    def adapters_of(self, work: Work) -> int:
        """How many adapters a work loads."""
        return self.xlora_adapters if work.adapters is None else work.adapters


def chosen_works(names: str | None) -> tuple[Work, ...]:
    """Works by their names with commas between, in the order of `WORKS`; all without names.

    Raises:
        RequestError: there is none of a name; lists those there are.
    """
    if names is None:
        return tuple(WORKS.values())
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in WORKS:
            raise RequestError(f"There is no work {name!r}.", field="--work", remedy=f"Choose of {', '.join(WORKS)}.")
    if not wanted:
        raise RequestError("No work is named.", field="--work", remedy=f"Choose of {', '.join(WORKS)}.")
    return tuple(work for work in WORKS.values() if work.name in wanted)
