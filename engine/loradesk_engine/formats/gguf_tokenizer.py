"""The tokenizer and chat template that a GGUF file carries, for the `tokenizers` library.

Nothing beside the file is needed. Two kinds are read: byte-level BPE (`gpt2`), whose pre-tokenizer the file names
(gguf_pretokenizers.py), and SentencePiece BPE (`llama`), whose merges follow from the pieces' scores (gguf_pieces.py).
What the file does not say is what llama.cpp takes for it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from loradesk_engine.errors import FileFormatError
from loradesk_engine.formats.gguf_pieces import TooManyMerges, piece_merges
from loradesk_engine.formats.gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer
from loradesk_engine.formats.template import ChatTemplate
from loradesk_engine.formats.tokenizer import WORD_SIGN, Tokenizer

logger = logging.getLogger(__name__)

# Kinds of token in `tokenizer.ggml.token_type`
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
LLAMA_BOS, LLAMA_EOS = 1, 2  # of SentencePiece vocabularies that do not say which they are
PHI3 = ("phi3", "phi-3")
KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")  # the special tokens of Phi-3 that take no space after them away


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
    types = fields.numbers("tokenizer.ggml.token_type", len(tokens))
    prefix = fields.flag("tokenizer.ggml.add_space_prefix", True)
    if kind == "gpt2":
        way = _pre_tokenizer(fields)
        backend, add_bos = _byte_level(fields, tokens, way), way.add_bos
    elif kind == "llama":
        backend, add_bos = _sentence_piece(fields, tokens, types, prefix), True
    else:
        raise fields.refuse("tokenizer.ggml.model", f"The tokenizer {kind!r} is not supported.", "gpt2 and llama are.")
    signs = kind == "llama" and not prefix
    _add_special_tokens(backend, tokens, types, normalized=signs, strip_after=_is_phi3(metadata, kind))
    defaults = {"bos": LLAMA_BOS, "eos": LLAMA_EOS, "unknown": 0} if kind == "llama" else {}
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: token for name, key in names.items() if (token := fields.token(key, tokens, defaults.get(key)))}
    first = special.get("bos_token") if fields.flag("tokenizer.ggml.add_bos_token", add_bos) else None
    last = special.get("eos_token") if fields.flag("tokenizer.ggml.add_eos_token", False) else None
    _add_around(backend, first, last)
    source = metadata.get("tokenizer.chat_template")
    template = ChatTemplate(source, file=str(path), special_tokens=special) if isinstance(source, str) else None
    return Tokenizer(backend, template, str(path))


def _pre_tokenizer(fields: _Fields) -> PreTokenizer:
    name = fields.text("tokenizer.ggml.pre") if "tokenizer.ggml.pre" in fields.metadata else "default"
    if name not in PRE_TOKENIZERS:
        raise fields.refuse(
            "tokenizer.ggml.pre",
            f"The pre-tokenizer {name!r} is not supported.",
            f"Supported: {', '.join(sorted(PRE_TOKENIZERS))}.",
        )
    return PRE_TOKENIZERS[name]


def _byte_level(fields: _Fields, tokens: Sequence[str], way: PreTokenizer) -> tokenizers.Tokenizer:
    merges = []
    vocabulary = {token: number for number, token in enumerate(tokens)}
    for merge in fields.texts("tokenizer.ggml.merges"):
        left, space, right = merge.partition(" ")
        if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise fields.refuse("tokenizer.ggml.merges", f"{merge!r} does not merge two tokens to a third.")
        merges.append((left, right))
    backend = _backend(fields, models.BPE, vocab=vocabulary, merges=merges, ignore_merges=way.ignore_merges)
    backend.pre_tokenizer = way.build()
    backend.decoder = decoders.ByteLevel()
    normalizer = way.normalizer()
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def _sentence_piece(fields: _Fields, tokens: Sequence[str], types: Sequence[int], prefix: bool) -> tokenizers.Tokenizer:
    """`prefix`: a text gets a space before it."""
    scores = fields.numbers("tokenizer.ggml.scores", len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merged = [number for number, token in enumerate(tokens) if _is_merged(token, types[number], prefix)]
    try:
        merges = piece_merges(tokens, scores, vocabulary, merged)
    except TooManyMerges as problem:
        raise fields.refuse(
            "tokenizer.ggml.tokens", str(problem), "This is no vocabulary that was trained: do not use the file."
        ) from None
    backend = _backend(
        fields,
        models.BPE,
        vocab=vocabulary,
        merges=merges,
        unk_token=fields.token("unknown", tokens, 0),
        fuse_unk=True,
        byte_fallback="<0x00>" in vocabulary,
    )
    spaces = [normalizers.Replace(" ", WORD_SIGN)]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(WORD_SIGN), *spaces] if prefix else spaces)
    steps = [decoders.Replace(WORD_SIGN, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _is_merged(token: str, token_type: int, prefix: bool) -> bool:
    """Whether merging makes the piece: it stands for no byte, and the text is not searched for it as a whole."""
    if token_type == USER_DEFINED:
        return prefix and WORD_SIGN in token
    return token_type not in (UNKNOWN, CONTROL, BYTE)


def _backend(fields: _Fields, model: Any, **options: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(model(**options))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as problem:  # a panic inside the library is a BaseException
        if not isinstance(problem, Exception):
            logger.warning("A panic inside the tokenizers library", exc_info=True)
        raise fields.refuse("tokenizer.ggml.merges", f"The tokenizer cannot be built: {problem}.") from None


def _add_special_tokens(
    backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int], *, normalized: bool, strip_after: bool
) -> None:
    """Tokens that are looked for as a whole before anything is merged; their ids are those of the vocabulary.

    All at once: the library prepares its search anew at each call.

    Args:
        normalized: signs for spaces in them are looked for where the text has spaces.
        strip_after: they take the space that follows with them.
    """
    special: list[AddedToken] = []
    others: list[AddedToken] = []
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (CONTROL, UNKNOWN, USER_DEFINED):
            own = token_type == USER_DEFINED
            added = AddedToken(
                token,
                special=not own,
                # a run of spaces is only there once they have become signs; with a prefix the token would get one, too
                normalized=own and normalized and WORD_SIGN in token,
                rstrip=strip_after and token not in KEEPS_SPACE,
            )
            (others if own else special).append(added)
    backend.add_special_tokens(special)
    backend.add_tokens(others)


def _is_phi3(metadata: Mapping[str, Any], kind: str) -> bool:
    """Whether special tokens take the space after them away. Only Phi-3's tokenizer.json says so, the file does not:
    llama.cpp goes by the model's name. Phi-3.5's files have another, so that its vocabulary's kind counts too."""
    name = metadata.get("general.name")
    named = isinstance(name, str) and any(part in name.lower() for part in PHI3)
    return named or (kind == "llama" and metadata.get("general.architecture") == "phi3")


def _add_around(backend: tokenizers.Tokenizer, first: str | None, last: str | None) -> None:
    """Tokens that plain text begins and ends with."""
    around = {name: token for name, token in (("first", first), ("last", last)) if token is not None}
    if around:
        # under names of ours: what a token's own text may be is limited there
        backend.post_processor = processors.TemplateProcessing(
            single=[name for name in ("first", "$A", "last") if name == "$A" or name in around],
            special_tokens=[
                {"id": name, "ids": [backend.token_to_id(token)], "tokens": [token]} for name, token in around.items()
            ],
        )


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
        """Type or score of every token; the same for all where the file has none."""
        value = self.metadata.get(key)
        if value is None:
            return [1] * count  # ordinary tokens
        try:
            numbers = np.asarray(value)
        except ValueError:  # lists of several lengths
            numbers = np.zeros(0)
        if numbers.shape != (count,) or numbers.dtype.kind not in "iuf":
            raise self.refuse(key, f"{count} numbers are expected, one for each token.")
        found: list[Any] = numbers.tolist()
        return found

    def token(self, name: str, tokens: Sequence[str], default: int | None = None) -> str | None:
        """The token that `tokenizer.ggml.<name>_token_id` names; None where it names none."""
        number = self.metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        return tokens[number] if type(number) is int and 0 <= number < len(tokens) else None
