"""How text is cut before a byte-level vocabulary merges it: GGUF files only name the way (`tokenizer.ggml.pre`).

What the names mean is llama.cpp's table (`llama-vocab.cpp`). Where its expressions only come near to those of the
model's own tokenizer.json, as for tekken and falcon, the latter are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tokenizers import Regex, normalizers, pre_tokenizers

Step = Callable[[], pre_tokenizers.PreTokenizer]


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut text.

    Attributes:
        steps: regular expressions, whose matches and what is between them become pieces, and steps of the library.
        ignore_merges: a piece that is in the vocabulary as it is becomes that token, whatever the merges make of it.
        add_bos: plain text begins with the first token where the file does not say so.
        composed: accents are put on their letters first (NFC).
    """

    steps: tuple[str | Step, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    composed: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The library's form; its pieces are made of the letters that stand for bytes."""
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(step), behavior="isolated") if isinstance(step, str) else step()
                for step in self.steps
            ]
        )

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composed else None


_BYTES: Step = partial(pre_tokenizers.ByteLevel, add_prefix_space=False, use_regex=False)
_GPT2: Step = partial(pre_tokenizers.ByteLevel, add_prefix_space=False, use_regex=True)
_DIGIT: Step = partial(pre_tokenizers.Digits, individual_digits=True)
_DIGITS: Step = partial(pre_tokenizers.Digits, individual_digits=False)
_PUNCTUATION: Step = partial(pre_tokenizers.Punctuation, behavior="contiguous")

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English contractions
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CL100K = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}"
_MINICPM = rf"{_SHORT}|{_WORD}|\p{{N}}+|{_SIGNS}|{_SPACE}"
_SEED = rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}"
# words end where a capital follows a small letter
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SMALL, _LARGE = (rf"[^\r\n\p{{L}}\p{{N}}]?{letters}" for letters in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = rf"{_SMALL}|{_LARGE}|\p{{N}}|{_PATHS}|{_SPACE}"
_GPT4O = rf"{_SMALL}{_SHORT}?|{_LARGE}{_SHORT}?|\p{{N}}{{1,3}}|{_PATHS}|{_SPACE}"
_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{0800}-\x{9FA5}\x{AC00}-\x{D7FF}]+", _DIGIT, _BYTES)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_OLD = (
    r"[\p{P}$+<=>^~|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9]{3}",
    _BYTES,
)

_LLAMA3_NAMES = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
_GPT2_NAMES = ("gpt-2", "phi-2", "olmo", "jais", "mpt", "gigachat", "a.x-4.0", "mellum", "exaone4", "trillion")
_DIGIT_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")
_WAYS = (
    (_LLAMA3_NAMES, PreTokenizer((_CL100K, _BYTES), ignore_merges=True, add_bos=True)),
    (("dbrx", "smaug-bpe"), PreTokenizer((_CL100K, _BYTES))),
    (("qwen2", "deepseek-r1-qwen"), PreTokenizer((_QWEN2, _BYTES), composed=True)),
    (("stablelm2", "megrez", "kormo", "f2llmv2", "hunyuan"), PreTokenizer((_QWEN2, _BYTES))),
    (("tekken",), PreTokenizer((_TEKKEN, _BYTES), ignore_merges=True, add_bos=True)),
    (("gpt-4o", "llama4", "kanana2", "talkie"), PreTokenizer((_GPT4O, _BYTES))),
    ((*_GPT2_NAMES, "granite-docling"), PreTokenizer((_GPT2,))),
    (_DIGIT_NAMES, PreTokenizer((_DIGIT, _GPT2))),
    (("deepseek-coder",), PreTokenizer(_CODER)),
    (("seed-coder",), PreTokenizer((_SEED, _BYTES))),
    (("minicpm5",), PreTokenizer((r"\p{N}{1,3}", _MINICPM, _BYTES), ignore_merges=True)),
    (("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer((_BLOOM, _BYTES))),
    (("viking",), PreTokenizer((_BLOOM, _DIGIT, _BYTES))),
    (("falcon",), PreTokenizer((_PUNCTUATION, _GPT2, _DIGITS, "[0-9]{3}"))),
    (("default",), PreTokenizer(_OLD)),
)

PRE_TOKENIZERS = {name: way for names, way in _WAYS for name in names}
"""By the name in `tokenizer.ggml.pre`; `default` is what a file without it means."""
