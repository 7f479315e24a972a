"""Conversations to arrays of tokens, made by many processes at once."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from random import Random

import numpy as np
from tokenizers import Tokenizer

from .tasks import EXPERTS
from .text import ALL, ASSISTANT, BOS, END, PAD, Conversation, Message, Mixture, conversation

LENGTH = 1024
ROUTED = ALL + 1  # `active` of a conversation in which every token has its own mixture
NOWHERE = 255  # `route` of a token that no expert needs to see
# what a position is worth to the loss
SKIP, LEARN, READ, READ_FIRST = range(
    4
)  # nothing; the model says the next token; text of the user; its first tokens, before the task is known


@dataclass
class Rows:
    """Conversations packed into rows of equal length, one number a token in each array."""

    ids: np.ndarray  # uint16
    route: np.ndarray  # uint8: the expert that this position should listen to
    worth: np.ndarray  # uint8: SKIP, LEARN, READ or READ_FIRST
    active: np.ndarray  # uint8: the adapters that are on, or ROUTED

    @staticmethod
    def join(parts: list["Rows"]) -> "Rows":
        return Rows(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("ids", "route", "worth", "active")))


def prompt(messages: list[Message]) -> str:
    """The chat template, for the next answer."""
    return BOS + "".join(f"<|{m.role}|>{m.text}{END}" for m in messages) + ASSISTANT


def encode(tokenizer: Tokenizer, conversations: list[Conversation]) -> list[np.ndarray]:
    """Each conversation as an array [4, tokens]: ids, route, worth, active."""
    segments = [s.text for c in conversations for m in c.messages for s in m.segments]
    encoded = iter(tokenizer.encode_batch_fast(segments, add_special_tokens=False))
    bos, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(END)
    out = []
    for c in conversations:
        ids, route, worth = [bos], [NOWHERE], [SKIP]
        for message in c.messages:
            ids.append(tokenizer.token_to_id(f"<|{message.role}|>"))
            content: list[int] = []
            owner: list[int] = []
            early: list[bool] = []
            for segment in message.segments:
                tokens = next(encoded).ids
                content += tokens
                owner += [segment.expert] * len(tokens)
                early += [i < 3 for i in range(len(tokens))]
            if message.role == "assistant":
                # A position belongs to the expert of the token that it predicts.
                route += [*owner, owner[-1], NOWHERE]
                worth += [LEARN if message.learn else SKIP] * (len(content) + 1) + [SKIP]
            else:
                route += [NOWHERE, *(owner if message.role == "user" else [NOWHERE] * len(owner)), NOWHERE]
                worth += [SKIP, *(READ_FIRST if e else READ for e in early), SKIP]
            ids += content
            ids.append(end)
        out.append(np.array([ids, route, worth, [c.active] * len(ids)], dtype=np.uint16))
    return out


def pack(tokenizer: Tokenizer, seed: int, rows: int, mixture: Mixture, active: Callable[[Random], int]) -> Rows:
    """`rows` rows full of conversations under adapters chosen by `active`."""
    rng = Random(seed)
    filled: list[list[np.ndarray]] = []
    open_rows: list[tuple[int, list[np.ndarray]]] = []  # (room, documents); a few, so that little room is lost
    while len(filled) < rows:
        batch = []
        for _ in range(500):
            on = active(rng)
            c = conversation(rng, mixture, min(on, ALL))
            batch.append(Conversation(c.messages, on))
        for whole in encode(tokenizer, batch):
            doc = whole[:, :LENGTH]
            size = doc.shape[1]
            fit = next((i for i, (room, _) in enumerate(open_rows) if room >= size), None)
            room, row = open_rows.pop(fit) if fit is not None else (LENGTH, [])
            row.append(doc)
            open_rows.append((room - size, row))
            if len(open_rows) > 8:
                fullest = min(range(len(open_rows)), key=lambda i: open_rows[i][0])
                filled.append(open_rows.pop(fullest)[1])
    out = np.empty((4, rows, LENGTH), dtype=np.uint16)
    out[0], out[1], out[2], out[3] = tokenizer.token_to_id(PAD), NOWHERE, SKIP, 0
    for i, row in enumerate(filled[:rows]):
        joined = np.concatenate(row, axis=1)
        out[:, i, : joined.shape[1]] = joined
    return Rows(out[0], out[1].astype(np.uint8), out[2].astype(np.uint8), out[3].astype(np.uint8))


def nothing_on(_rng: Random) -> int:
    return 0


def all_on(_rng: Random) -> int:
    return ROUTED


def any_on(rng: Random) -> int:
    """For the adapters: alone, in company, and mixed token by token."""
    kind = rng.random()
    if kind < 0.45:
        return ROUTED
    if kind < 0.75:
        return 1 << rng.randrange(len(EXPERTS))
    return rng.randint(1, ALL)


@dataclass(frozen=True)
class Plan:
    """What a stage reads."""

    rows: int
    mixture: Mixture
    active: Callable[[Random], int]


PLANS = {
    "base": Plan(100_000, Mixture(0.74, 0.18, 0.08, (3, 3, 2, 2)), nothing_on),
    "adapters": Plan(64_000, Mixture(0.25, 0.5, 0.25, (4, 2.5, 2.5, 0.25)), any_on),
    "xlora": Plan(12_000, Mixture(0.25, 0.35, 0.4, (3, 2, 2, 0.8)), all_on),
}
_worker_tokenizer: Tokenizer | None = None


def start_worker(tokenizer_json: str) -> None:
    global _worker_tokenizer  # noqa: PLW0603 - a pool gives its processes nothing but this call
    _worker_tokenizer = Tokenizer.from_str(tokenizer_json)


def _job(stage: str, seed: int, rows: int) -> Rows:
    assert _worker_tokenizer is not None
    return pack(_worker_tokenizer, seed, rows, PLANS[stage].mixture, PLANS[stage].active)


def submit(pool: Executor, stage: str, share: float = 1.0, part: int = 500) -> list[Future]:
    """Starts making the rows of a stage; the seeds differ from stage to stage and part to part."""
    parts = max(1, round(PLANS[stage].rows * share / part))
    first = list(PLANS).index(stage) * 1_000_000
    rows = min(part, max(8, round(PLANS[stage].rows * share)))
    return [pool.submit(_job, stage, first + i, rows) for i in range(parts)]
