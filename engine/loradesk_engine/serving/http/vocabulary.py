"""Texts of tokens that were not sampled: the alternatives of log-probabilities. Events carry their ids only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from loradesk_engine.errors import LoradeskError
from loradesk_engine.events import ModelInfo

if TYPE_CHECKING:
    from loradesk_engine.formats.tokenizer import Tokenizer


class Vocabulary:
    """The loaded model's tokenizer, read when it is first needed.

    It is read again from a local model only; for a hub id, whose revision is not known here, tokens are called
    `token_id:N`, as vLLM does.
    """

    def __init__(self) -> None:
        self._base = ""
        self._tokenizer: Tokenizer | None = None

    async def prepare(self, info: ModelInfo | None) -> None:
        """Read the tokenizer of this model, beside the event loop."""
        if info is not None and info.base != self._base:
            self._tokenizer = await asyncio.to_thread(_read, info.base)
            self._base = info.base

    def text(self, token: int) -> str:
        """Text of a token by itself."""
        return f"token_id:{token}" if self._tokenizer is None else self._tokenizer.token_text(token)


def _read(base: str) -> Tokenizer | None:
    path = Path(base).expanduser()
    if not path.exists():
        return None
    from loradesk_engine.model.base import read_base  # torch, which the worker has imported for the model

    try:
        return read_base(path).tokenizer()
    except (LoradeskError, OSError):
        return None
