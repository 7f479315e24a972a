"""tokenizer.json and its companions: text to ids and back, the chat template, and text that streams out a token at a
time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from loradesk_engine.commands import Message
from loradesk_engine.errors import ConfigError, TemplateError
from loradesk_engine.files import MAX_JSON_BYTES, read_bytes, read_json_object
from loradesk_engine.formats.template import ChatTemplate

REPLACEMENT = "\ufffd"
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer.

    Args:
        backend: from the `tokenizers` library.
        template: the chat template, if the model has one.
        file: where it came from, for error messages.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: ChatTemplate | None, file: str) -> None:
        self._backend = backend
        self.template = template
        self.file = file

    @property
    def vocab_size(self) -> int:
        """Count of ids, added tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids. `special_tokens` adds what the model wants around plain text (usually a first token)."""
        return list(self._backend.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token: int) -> str:
        """One token by itself, special tokens too, for labels."""
        return self.decode([token], skip_special_tokens=False)

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
    try:
        return tokenizers.Tokenizer.from_str(raw.decode("utf-8"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # a panic inside the library is a BaseException
        text = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ConfigError(
            f"The tokenizer cannot be read: {text}.", file=path, remedy="Download or copy the file again."
        ) from None


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
