"""What is kept out of the log: keys and tokens, and texts of conversations.

The first line of defence is that no message of ours is made from them. This is the second one, for errors whose
messages quote what they failed on.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable

HIDDEN = "[hidden]"
MIN_SECRET = 6
"""Characters of the shortest key that is looked for; a shorter one would be found in ordinary words."""
MAX_TEXTS = 24
MAX_TEXT = 20_000
RUN = 10
"""Characters that a message may not share with a text of a conversation."""
MAX_READ = 5000
MAX_MESSAGE = 500
"""Characters of an error's message that are looked at, and that are kept."""

_PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\bhf_[A-Za-z0-9]{6,}", HIDDEN),
        (r"\bsk-[A-Za-z0-9_\-]{6,}", HIDDEN),
        (r"\bloradesk-[A-Za-z0-9_\-]{20,}", HIDDEN),
        (r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9+/=._~\-]{6,}", rf"\1\2{HIDDEN}"),
        (
            r"(?i)\b((?:api[_-]?key|access[_-]?token|auth[_-]?token|token|password|passwd|secret|authorization)"
            r"[\"']?\s*[=:]\s*[\"']?)(?!bearer|basic|None\b|True\b|False\b)[^\s\"',;)}\]]{6,}",
            rf"\1{HIDDEN}",
        ),
        (r"(\w+://)[^/\s:@]+:[^/\s@]+@", rf"\1{HIDDEN}@"),
    )
)
_QUOTED = re.compile(r"""(?<!\w)(['"])((?:\\.|(?!\1).)*)(?:\1|\Z)""", re.DOTALL)
_PLAIN = re.compile(r"[\x21-\x7e]{1,200}")

_lock = threading.Lock()
_secrets: dict[str, None] = {}
_texts: deque[str] = deque(maxlen=MAX_TEXTS)


def protect(secret: str | None) -> None:
    """Keep a key or token out of the log from now on."""
    if secret and len(secret) >= MIN_SECRET:
        with _lock:
            _secrets[secret] = None


def protect_texts(texts: Iterable[str]) -> None:
    """Keep these texts of a conversation out of error messages; only the latest ones are remembered."""
    with _lock:
        _texts.extend(text[-MAX_TEXT:] for text in texts if text.strip())


def without_secrets(text: str) -> str:
    """The text with keys and tokens replaced: those that are known, and what looks like one."""
    with _lock:
        known = sorted(_secrets, key=len, reverse=True)
    for secret in known:
        text = text.replace(secret, HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def without_values(text: str) -> str:
    """The message of an error, without the values that it quotes and without texts of conversations.

    Names of types, attributes and files stay: a quoted text of one word that is in no conversation. A long message is
    cut.
    """
    with _lock:
        texts = tuple(_texts)

    def shown(match: re.Match[str]) -> str:
        quoted = match[2]
        if not quoted or (_PLAIN.fullmatch(quoted) and not any(_is_word_of(quoted, known) for known in texts)):
            return match[0]
        return f"{match[1]}({len(quoted)} characters){match[1]}"

    found = _QUOTED.sub(shown, text[:MAX_READ])
    cut = found if len(found) <= MAX_MESSAGE else f"{found[:MAX_MESSAGE]}…"
    return _without_runs(cut, texts)


def _is_word_of(word: str, text: str) -> bool:
    return word in text and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _without_runs(message: str, texts: Iterable[str]) -> str:
    """The message without passages that are in one of the texts."""
    hidden = [False] * len(message)
    for text in texts:
        run = min(RUN, len(text))
        if run < RUN and not _is_word_of(text, message):
            continue
        for start in range(len(message) - run + 1):
            if message[start : start + run] in text:
                hidden[start : start + run] = [True] * run
    parts: list[str] = []
    for place, letter in enumerate(message):
        if not hidden[place]:
            parts.append(letter)
        elif place == 0 or not hidden[place - 1]:
            parts.append(HIDDEN)
    return "".join(parts)
