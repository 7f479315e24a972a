"""tokenizer.json and its companions: text to ids and back, the chat template, and text that streams out a token at a
time.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from loradesk_engine.commands import Message
from loradesk_engine.errors import ConfigError, TemplateError
from loradesk_engine.files import MAX_JSON_BYTES, read_bytes, read_json_object
from loradesk_engine.formats.template import ChatTemplate

logger = logging.getLogger(__name__)

REPLACEMENT = "\ufffd"
WORD_SIGN = "▁"  # SentencePiece's for a space
BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")  # SentencePiece's for a byte that is no piece
PLACE = re.compile(r"at line (\d+) column (\d+)")  # in the library's errors
MAX_GROWTH = 1000  # of a text by a normalizer's or decoder's replacements; real ones stay under 10
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer.

    Args:
        backend: from the `tokenizers` library.
        template: the chat template, if the model has one.
        file: where it came from, for error messages.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None, file: str) -> None:
        _refuse_growth(backend, file)
        backend.no_truncation()  # a length that somebody trained with would cut conversations silently
        backend.no_padding()
        self._backend = backend
        self.template = template
        self.file = file
        self._added = frozenset(backend.get_added_tokens_decoder())
        self._byte_level = b'"ByteLevel"' in backend.decoder.__getstate__() if backend.decoder is not None else False

    @property
    def piece_count(self) -> int:
        """Count of the pieces that texts are cut into; tokens that were added to them are not counted."""
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids. `special_tokens` adds what the model wants around plain text (usually a first token)."""
        with _library_errors(self.file):
            return list(self._backend.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        with _library_errors(self.file):
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token: int) -> str:
        """One token by itself, special tokens too, for labels; parts of characters become U+FFFD."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes that a token stands for inside a text; nothing for an id that only pads the vocabulary."""
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if token in self._added and (self._byte_level or WORD_SIGN not in piece):
            return str(piece).encode()
        if self._byte_level and all(letter in BYTE_OF for letter in piece):
            return bytes(BYTE_OF[letter] for letter in piece)
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(byte[1]) if byte else str(piece).replace(WORD_SIGN, " ").encode()

    def chat_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation with the template's opening of the answer.

        Raises:
            TemplateError: the model has no template, or it fails on this conversation.
        """
        if self.template is None:
            raise TemplateError(
                "The model has no chat template.",
                file=self.file,
                field="chat_template",
                remedy="Use plain completion, or a model tuned for chat.",
            )
        return self.encode(self.template.render(messages))


def _byte_alphabet() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies: printable ones for themselves (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def read_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a model folder: tokenizer.json, tokenizer_config.json, chat_template.jinja.

    Raises:
        ConfigError: a file is missing or malformed; TemplateError: the chat template is.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    backend = _parse_backend(read_bytes(path, limit=MAX_JSON_BYTES, error=ConfigError), path)
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path, error=ConfigError) if config_path.is_file() else {}
    jinja_path = folder / "chat_template.jinja"
    if jinja_path.is_file():
        raw = read_bytes(jinja_path, limit=MAX_JSON_BYTES, error=TemplateError)
        source: str | None = raw.decode("utf-8", "replace")
        file = jinja_path
    else:
        source, file = _template_source(config, config_path), config_path
    template = (
        ChatTemplate(source, file=str(file), special_tokens=_special_tokens(config)) if source is not None else None
    )
    return Tokenizer(backend, template, str(path))


def _parse_backend(raw: bytes, path: Path) -> tokenizers.Tokenizer:
    with _library_errors(path):
        return tokenizers.Tokenizer.from_str(raw.decode("utf-8"))


@contextmanager
def _library_errors(file: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong inside the library as our error, its panics too: a file can bring them about, and as
    BaseExceptions they would end the worker.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:
        if not isinstance(problem, Exception):
            logger.warning("A panic inside the tokenizers library", exc_info=True)
        text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        place = PLACE.search(text)
        raise ConfigError(
            f"The tokenizer fails: {text}.",
            file=file,
            field=f"line {place[1]}, column {place[2]}" if place else "tokenizer",
            remedy="Download or copy the file again.",
        ) from None


def _refuse_growth(backend: tokenizers.Tokenizer, file: str) -> None:
    """Refuse steps that replace a character by a book, over and over: a short text would fill the memory."""
    for name, step in (("normalizer", backend.normalizer), ("decoder", backend.decoder)):
        left = [] if step is None else [json.loads(step.__getstate__())]
        growth = 1
        while left:
            one = left.pop()
            if isinstance(one, dict):
                content = one.get("content") if one.get("type") == "Replace" else None
                growth *= max(1, len(content)) if isinstance(content, str) else 1
                left += one.values()
            elif isinstance(one, list):
                left += one
        if growth > MAX_GROWTH:
            raise ConfigError(
                "Its replacements can make a text more than a thousand times as long.", file=file, field=name
            )


def _template_source(config: dict[str, Any], path: Path) -> str | None:
    value = config.get("chat_template")
    if isinstance(value, list):  # several named ones: "default" is the one for chat
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise ConfigError("The chat template is not a text.", file=path, field="chat_template")
    return value


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    result = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            result[name] = value
    return result


class TextStream:
    """Turns token ids into text as they come, never splitting a character.

    The concatenation of all that `add` and `finish` return equals the decoding of all ids at once. A token may end
    inside a character; its bytes are kept back until the character is whole (or known not to become one). Only the
    tokens since the last whole character are decoded again, with the ones before them as context, because some decoders
    treat the first token of a text differently.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens already given out, decoded again with the pending ones
        self._context_text = ""
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """Text that this token completes; empty while a character is unfinished."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._context + self._pending)
        if text.endswith(REPLACEMENT):
            return ""
        return self._give_out(text)

    def finish(self) -> str:
        """What is left at the end of the text: an unfinished character becomes U+FFFD."""
        return self._give_out(self._tokenizer.decode(self._context + self._pending)) if self._pending else ""

    def _give_out(self, text: str) -> str:
        new = text[len(self._context_text) :]
        if new:  # special tokens decode to nothing: they are no context of their own
            self._context, self._pending = self._pending, []
            self._context_text = self._tokenizer.decode(self._context)
        return new
