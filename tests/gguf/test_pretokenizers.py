"""How text is cut before merging, by the name in a GGUF file: against transformers' own table, and against the
pre-tokenizers that the models' tokenizer.json are published with.
"""

from __future__ import annotations

import random

import pytest
from tokenizers import Regex, pre_tokenizers

from loradesk_engine.formats.gguf_pretokenizers import PRE_TOKENIZERS

CHARACTERS = list("abAB'sTtllReVe1234567   \n\r\t.,/-$+<=>^~|`_\"(éЖßǅ日本ー가〆٣½²\u0301\u00a0\u3000…。，🦊")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def split(*patterns: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]


DIGIT = pre_tokenizers.Digits(individual_digits=True)
PUBLISHED = {
    # as in tokenizer.json of SmolLM2, StarCoder2, Command-R; DeepSeek-Coder; Falcon; GPT-2; Seed-Coder; Viking
    "smollm": [DIGIT, GPT2],
    "starcoder": [DIGIT, GPT2],
    "command-r": [DIGIT, GPT2],
    "deepseek-coder": [*split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), DIGIT, BYTES],
    "falcon": [pre_tokenizers.Punctuation("contiguous"), GPT2, pre_tokenizers.Digits(False), *split("[0-9][0-9][0-9]")],
    "gpt-2": [GPT2],
    "olmo": [GPT2],
    "seed-coder": [
        *split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        BYTES,
    ],
    "viking": [*split(r" ?[^(\s|.,!?…。，、।۔،)]+"), DIGIT, BYTES],
}


def texts() -> list[str]:
    chance = random.Random(5)
    return ["".join(chance.choices(CHARACTERS, k=chance.randrange(1, 40))) for _ in range(1000)] + [
        "I'LL don't WE'RE, aB cD HTTPServer x2y 3.1415926 1,234,567",
        "def f(x):\n\treturn x  # 20%\r\n\r\n   end   ",
    ]


def assert_same(name: str, steps: list[pre_tokenizers.PreTokenizer]) -> None:
    expected, ours = pre_tokenizers.Sequence(steps), PRE_TOKENIZERS[name].build()
    for text in texts():
        assert ours.pre_tokenize_str(text) == expected.pre_tokenize_str(text), text


@pytest.mark.parametrize("name", PUBLISHED)
def test_texts_are_cut_as_the_published_pre_tokenizer_cuts_them(name: str) -> None:
    assert_same(name, PUBLISHED[name])


def test_texts_are_cut_as_transformers_cuts_them() -> None:
    table = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")  # not in the first 5.x
    splits = table.GGUF_PRE_TOKENIZER_SPLITS
    names = sorted(splits.keys() & PRE_TOKENIZERS.keys())
    assert {"llama-bpe", "dbrx", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen", "gpt-4o"} <= set(names)
    for name in names:
        assert_same(name, [*split(splits[name]), BYTES])


def test_files_that_name_none_are_cut_as_llama_cpp_cuts_them() -> None:
    """Its own four expressions; there is no other reference, since no tokenizer.json has them."""
    words = [part for part, _ in PRE_TOKENIZERS["default"].build().pre_tokenize_str("It's $5+12345 `a`\n x")]
    assert words == ["It", "'", "s", "Ġ", "$", "5", "+", "123", "45", "Ġ`", "a", "`", "Ċ", "Ġx"]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_nothing_of_a_text_is_lost_or_doubled(name: str) -> None:
    way = PRE_TOKENIZERS[name].build()
    for text in texts()[:200]:
        pieces = way.pre_tokenize_str(text)
        assert "".join(piece for piece, _ in pieces) == "".join(piece for piece, _ in BYTES.pre_tokenize_str(text))
