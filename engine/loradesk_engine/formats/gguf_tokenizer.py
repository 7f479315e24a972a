"""The tokenizer and chat template that a GGUF file carries, for the `tokenizers` library.

Nothing beside the file is needed. Two kinds are read: byte-level BPE (`gpt2`), whose pre-tokenizer the file names, and
SentencePiece BPE (`llama`), whose merges follow from the pieces' scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from loradesk_engine.errors import FileFormatError
from loradesk_engine.formats.template import ChatTemplate
from loradesk_engine.formats.tokenizer import Tokenizer

# Kinds of token in `tokenizer.ggml.token_type`
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
    "gpt-4o": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
"""How text is split before merging, by the name in `tokenizer.ggml.pre`."""
SAME_PATTERN = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe", "deepseek-r1-qwen": "qwen2"}
PLAIN = ("gpt-2", "default", "phi-2", "olmo", "jais")
SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell")


def gguf_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        FileFormatError: a part is missing or malformed, or the kind is not supported; names file and key.
        TemplateError: the chat template is not valid.
    """
    fields = _Fields(metadata, path)
    kind = fields.text("tokenizer.ggml.model")
    tokens = fields.texts("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise fields.refuse("tokenizer.ggml.tokens", "A token appears twice.")
    if kind == "gpt2":
        backend = _byte_level(fields, tokens)
    elif kind == "llama":
        backend = _sentence_piece(fields, tokens)
    else:
        raise fields.refuse("tokenizer.ggml.model", f"The tokenizer {kind!r} is not supported.", "gpt2 and llama are.")
    types = fields.numbers("tokenizer.ggml.token_type", len(tokens))
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (CONTROL, USER_DEFINED, UNKNOWN):
            added = AddedToken(token, special=token_type != USER_DEFINED, normalized=False)
            (backend.add_tokens if token_type == USER_DEFINED else backend.add_special_tokens)([added])
    _add_bos(fields, backend, tokens, default=kind == "llama")
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {}
    for name, key in names.items():
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token_id, int) and 0 <= token_id < len(tokens):
            special[name] = tokens[token_id]
    source = metadata.get("tokenizer.chat_template")
    template = ChatTemplate(source, file=str(path), special_tokens=special) if isinstance(source, str) else None
    return Tokenizer(backend, template, str(path))


def _byte_level(fields: _Fields, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    name = fields.text("tokenizer.ggml.pre") if "tokenizer.ggml.pre" in fields.metadata else "default"
    pattern = PATTERNS.get(SAME_PATTERN.get(name, name))
    merges = []
    known = set(tokens)
    for merge in fields.texts("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or left not in known or right not in known or left + right not in known:
            raise fields.refuse("tokenizer.ggml.merges", f"{merge!r} does not merge two tokens to a third.")
        merges.append((left, right))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = _backend(fields, models.BPE, vocab=vocabulary, merges=merges, ignore_merges=name == "llama-bpe")
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        before = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif name in SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        before = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    elif name in PLAIN:
        before = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    else:
        supported = ", ".join(sorted({*PATTERNS, *SAME_PATTERN, *PLAIN, *SINGLE_DIGITS}))
        raise fields.refuse(
            "tokenizer.ggml.pre", f"The pre-tokenizer {name!r} is not supported.", f"Supported: {supported}."
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(before)
    backend.decoder = decoders.ByteLevel()
    if SAME_PATTERN.get(name, name) == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _sentence_piece(fields: _Fields, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """Pieces with scores: two neighbours merge to the piece of the highest score, so scores give the merges' order."""
    scores = fields.numbers("tokenizer.ggml.scores", len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    found: list[tuple[float, int, int, str, str]] = []
    for number, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-float(scores[number]), vocabulary[left], vocabulary[right], left, right))
    found.sort(key=lambda item: item[:3])
    merges = [(left, right) for *_, left, right in found]
    unknown = fields.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    unknown_token = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    backend = _backend(
        fields,
        models.BPE,
        vocab=vocabulary,
        merges=merges,
        unk_token=unknown_token,
        fuse_unk=True,
        byte_fallback="<0x00>" in vocabulary,
    )
    prefix = fields.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if prefix else spaces)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _backend(fields: _Fields, model: Any, **options: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(model(**options))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # a panic inside the library is a BaseException
        raise fields.refuse("tokenizer.ggml.merges", f"The tokenizer cannot be built: {problem}.") from None


def _add_bos(fields: _Fields, backend: tokenizers.Tokenizer, tokens: Sequence[str], *, default: bool) -> None:
    bos = fields.metadata.get("tokenizer.ggml.bos_token_id")
    if fields.flag("tokenizer.ggml.add_bos_token", default) and isinstance(bos, int) and 0 <= bos < len(tokens):
        token = tokens[bos]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{token}:0 $A:0" if _plain(token) else [token, "$A"], special_tokens=[(token, bos)]
        )


def _plain(token: str) -> bool:
    return " " not in token and ":" not in token and "$" not in token


class _Fields:
    """Typed access to the file's metadata."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.metadata = metadata
        self._path = path

    def refuse(self, key: str, problem: str, remedy: str | None = None) -> FileFormatError:
        return FileFormatError(problem, file=self._path, field=key, remedy=remedy)

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "true or false is expected.")
        return value

    def text(self, key: str) -> str:
        value = self.metadata.get(key)
        if not isinstance(value, str):
            raise self.refuse(key, "A text is missing.", "The file carries no tokenizer.")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.metadata.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.refuse(key, "A list of texts is missing.", "The file carries no tokenizer.")
        return value

    def numbers(self, key: str, count: int) -> Sequence[Any]:
        value = self.metadata.get(key)
        if value is None:
            return [1] * count  # every token an ordinary one
        if not hasattr(value, "__len__") or isinstance(value, str) or len(value) != count:
            raise self.refuse(key, f"{count} numbers are expected, one for each token.")
        return value.tolist() if hasattr(value, "tolist") else list(value)
