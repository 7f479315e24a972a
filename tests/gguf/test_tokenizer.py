"""Tokenizers out of GGUF files: SentencePiece's kind against the sentencepiece package, Phi-3's against the flags of
its published tokenizer.json, and what llama.cpp takes for what a file does not say.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from support.clock import processor_time
from support.limits import CPU_SECONDS
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from loradesk_engine.errors import FileFormatError
from loradesk_engine.formats import gguf_pieces
from loradesk_engine.formats.gguf_tokenizer import gguf_tokenizer
from loradesk_engine.formats.tokenizer import TextStream, Tokenizer

FILE = Path("m.gguf")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEXTS = [
    "Hello, who are you?", " a space before", "after  ", "two  spaces   three    four     five",
    "tabs\tand\nnew\n\nlines\n\n\n\n", "naïve café über größer", "日本語 漢字 かな",
    "a 🦊 and 👩‍👩‍👧 here", "ünïcode e\u0301",
    "1234567 3.14 1,000", "def f(x):\n        return x  # comment\n", "▁ is not a space", "<0x0A> is not a byte",
    "", " ", "   ", "\n", "\0\x01\x7f", "a<start_of_turn>user\nHi<end_of_turn>\n", "<table><td>x</td></table>",
    "x" * 70, " " * 45 + "x",
    "“quotes” — dash… \u00a0\ufeff\u200b", "the model layers adapter scalings configuration tokenizer",
]  # fmt: skip
RUNS = ["▁" * count for count in range(2, 13)]


def train(kind: str) -> sentencepiece.SentencePieceProcessor:
    """A vocabulary of a few hundred pieces: as Llama 2 has it, or as Gemma does."""
    here = Path(__file__).read_text(encoding="utf-8").splitlines()
    made = io.BytesIO()
    extra: dict[str, Any] = {"add_dummy_prefix": True}
    if kind == "gemma":
        symbols = ["<start_of_turn>", "<end_of_turn>", "<table>", "<td>", "\n", "\n\n", "\n\n\n", *RUNS]
        extra = {"add_dummy_prefix": False, "user_defined_symbols": symbols}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(here + TEXTS * 3), model_writer=made, vocab_size=700, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        minloglevel=2, allow_whitespace_only_pieces=True, character_coverage=0.98, num_threads=1, **extra,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


def metadata_of(model: sentencepiece.SentencePieceProcessor, kind: str, *, as_spaces: bool = False) -> dict[str, Any]:
    """What llama.cpp's converter writes of it.

    Args:
        as_spaces: signs for spaces in user-defined pieces become spaces, as the converter writes them since 2024.
    """
    pieces = [model.id_to_piece(number) for number in range(len(model))]
    own = (
        {"<start_of_turn>", "<end_of_turn>", "<table>", "<td>", "\n", "\n\n", "\n\n\n", *RUNS}
        if kind == "gemma"
        else set()
    )
    types = [
        UNKNOWN if model.is_unknown(number)
        else CONTROL if model.is_control(number)
        else BYTE if model.is_byte(number)
        else USER_DEFINED if piece in own
        else NORMAL
        for number, piece in enumerate(pieces)
    ]  # fmt: skip
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.replace("▁", " ") if as_spaces and piece in own else piece for piece in pieces],
        "tokenizer.ggml.scores": np.array([model.get_score(number) for number in range(len(model))], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.add_space_prefix": kind == "llama",
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
    }


@pytest.fixture(scope="module", params=["llama", "gemma"])
def trained(request: pytest.FixtureRequest) -> tuple[str, sentencepiece.SentencePieceProcessor]:
    return request.param, train(request.param)


@pytest.mark.parametrize("as_spaces", [False, True], ids=["signs", "spaces"])
def test_pieces_are_those_of_sentencepiece(
    trained: tuple[str, sentencepiece.SentencePieceProcessor], as_spaces: bool
) -> None:
    kind, model = trained
    ours = gguf_tokenizer(metadata_of(model, kind, as_spaces=as_spaces), FILE)
    for text in TEXTS:
        if as_spaces and "▁" in text:
            continue  # a sign that is none is kept apart from spaces then
        expected = model.encode(text)
        assert ours.encode(text) == expected, text
        assert ours.encode(text, special_tokens=True) == [model.bos_id(), *expected]
        assert ours.decode(expected) == model.decode(expected)
        stream = TextStream(ours)
        assert "".join([stream.add(token) for token in expected]) + stream.finish() == model.decode(expected)
        # byte by byte: with the space before the text that decoding takes away
        before = b" " if kind == "llama" and text else b""
        assert b"".join(map(ours.token_bytes, expected)) == before + text.replace("▁", " ").encode()


def test_runs_of_spaces_are_cut_as_sentencepiece_cuts_them(
    trained: tuple[str, sentencepiece.SentencePieceProcessor],
) -> None:
    kind, model = trained
    ours = gguf_tokenizer(metadata_of(model, kind), FILE)
    for count in range(40):
        for text in (" " * count + "a", "a" + " " * count, "\n" * count + " " * count):
            assert ours.encode(text) == model.encode(text), repr(text)


def test_control_tokens_are_found_and_what_is_between_them_is_text(
    trained: tuple[str, sentencepiece.SentencePieceProcessor],
) -> None:
    """sentencepiece itself never takes them from a text: a prompt is put together around them."""
    kind, model = trained
    ours = gguf_tokenizer(metadata_of(model, kind), FILE)
    expected = [model.bos_id(), *model.encode("Hello you"), model.eos_id(), *model.encode(" and me")]
    assert ours.encode("<s>Hello you</s> and me") == expected
    assert ours.decode(expected, skip_special_tokens=True) == model.decode(expected)


def test_a_vocabulary_without_its_first_and_last_token_has_those_of_llama() -> None:
    model = train("llama")
    values = metadata_of(model, "llama")
    del values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.eos_token_id"]
    values["tokenizer.ggml.add_eos_token"] = True
    assert gguf_tokenizer(values, FILE).encode("a", special_tokens=True) == [1, *model.encode("a"), 2]


# --- limits -----------------------------------------------------------------------------------------------------------


def pieces(tokens: list[str], **more: Any) -> dict[str, Any]:
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.zeros(len(tokens)),
    }
    return values | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def test_sentencepiece_trains_no_longer_pieces_than_we_read() -> None:
    with pytest.raises(RuntimeError, match=f"max_sentencepiece_length.* <= {gguf_pieces.MAX_PIECE}"):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["ab"]),
            model_writer=io.BytesIO(),
            max_sentencepiece_length=gguf_pieces.MAX_PIECE + 1,
        )


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        pytest.param(["a" * size for size in range(1, 500)], "over 4,992 merges", id="every run of a letter"),
        pytest.param(["a", "b" * 200_000], "200,000 characters, our limit is 512", id="one long piece"),
        pytest.param([f"{number:0512}" for number in range(35_000)], "over 16,777,216 characters", id="long pieces"),
    ],
)
def test_pieces_that_nobody_trained_are_refused(tokens: list[str], message: str) -> None:
    with processor_time(CPU_SECONDS), pytest.raises(FileFormatError, match=message) as caught:
        gguf_tokenizer(pieces(tokens), FILE)
    assert (caught.value.file, caught.value.field) == (str(FILE), "tokenizer.ggml.tokens")
    assert caught.value.remedy


def test_many_special_tokens_take_no_time_and_keep_their_ids() -> None:
    """Control and user-defined ones by turns, each 20,000 times."""
    tokens = ["<unk>", "▁", "a"] + [f"<|{number}|>" for number in range(40_000)]
    types = [UNKNOWN, NORMAL, NORMAL] + [CONTROL, USER_DEFINED] * 20_000
    values = pieces(tokens, token_type=np.array(types), unknown_token_id=0, add_space_prefix=False)
    with processor_time(CPU_SECONDS):
        tokenizer = gguf_tokenizer(values, FILE)
        assert tokenizer.encode("a<|7|>a<|39998|><|39999|>") == [2, 10, 2, 40_001, 40_002]
        assert tokenizer.decode([10, 40_001, 40_002, 2]) == "<|7|><|39999|>a"  # control tokens are skipped


@pytest.mark.parametrize(
    "value", ["text", ["a"] * 3, [[1], [2, 3], [4]], np.zeros(2), np.zeros((3, 1)), 1.0, np.ones(3, bool)]
)
@pytest.mark.parametrize("key", ["scores", "token_type"])
def test_numbers_that_are_none(key: str, value: Any) -> None:
    with pytest.raises(FileFormatError) as caught:
        gguf_tokenizer(pieces(["a", "b", "ab"], **{key: value}), FILE)
    assert caught.value.field == f"tokenizer.ggml.{key}"


# --- what surrounds a text --------------------------------------------------------------------------------------------

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(pre: str, **more: Any) -> dict[str, Any]:
    tokens = [*LETTERS, "ab", "bc", "abc", "<|begin|>", "<|end:0 $A|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b", "b c"],
        "tokenizer.ggml.token_type": np.array([NORMAL] * 259 + [CONTROL] * 2),
        "tokenizer.ggml.bos_token_id": 259,
        "tokenizer.ggml.eos_token_id": 260,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


@pytest.mark.parametrize("pre", ["llama-bpe", "llama3", "llama-v3", "tekken"])
def test_names_that_imply_a_first_token_and_whole_words(pre: str) -> None:
    """As llama.cpp takes them where the file has no key for it."""
    assert gguf_tokenizer(byte_level(pre), FILE).encode("abc", special_tokens=True) == [259, 258]
    without = gguf_tokenizer(byte_level(pre, add_bos_token=False), FILE)
    assert without.encode("abc", special_tokens=True) == [258]


@pytest.mark.parametrize("pre", ["gpt-2", "dbrx", "smaug-bpe", "qwen2", "smollm", "default"])
def test_names_that_imply_neither(pre: str) -> None:
    found = gguf_tokenizer(byte_level(pre), FILE).encode("abc", special_tokens=True)
    assert found == [256, LETTERS.index("c")]
    with_first = gguf_tokenizer(byte_level(pre, add_bos_token=True), FILE)
    assert with_first.encode("abc", special_tokens=True) == [259, *found]


def test_a_last_token_is_added_where_the_file_asks_for_it() -> None:
    """Its text holds what the library's templates are written with."""
    both = gguf_tokenizer(byte_level("gpt-2", add_eos_token=True, add_bos_token=True), FILE)
    assert both.encode("ab", special_tokens=True) == [259, 256, 260]
    assert gguf_tokenizer(byte_level("gpt-2", add_eos_token=True), FILE).encode("ab", special_tokens=True) == [256, 260]
    absent = byte_level("gpt-2", add_eos_token=True, add_bos_token=True, bos_token_id=10**6, eos_token_id=-1)
    assert gguf_tokenizer(absent, FILE).encode("ab", special_tokens=True) == [256]


# --- Phi-3 ------------------------------------------------------------------------------------------------------------

PHI3_TOKENS = [
    "<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "H", "i", "▁H", "▁Hi", "Hi", "\n",
    "<|endoftext|>", "<|user|>", "<|end|>", "<|assistant|>",
]  # fmt: skip
PHI3_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' }}"
)


def published_phi3() -> tokenizers.Tokenizer:
    """Phi-3-mini's tokenizer.json: `rstrip` of </s>, <|user|>, <|end|> and <|assistant|>, of <|endoftext|> not."""
    ids = {token: number for number, token in enumerate(PHI3_TOKENS)}
    merges = [("▁", "H"), ("H", "i"), ("▁H", "i"), ("▁", "Hi")]
    backend = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    plain, stripping = ["<unk>", "<s>", "<|endoftext|>"], ["</s>", "<|user|>", "<|end|>", "<|assistant|>"]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in plain])
    backend.add_special_tokens([AddedToken(token, normalized=False, rstrip=True) for token in stripping])
    return backend


def phi3(**general: str) -> Tokenizer:
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * 7, *[CONTROL] * 4]
    scores = np.array([0.0] * 262 + [-1.0, -3.0, -2.0] + [0.0] * 5)
    values = pieces(PHI3_TOKENS, token_type=np.array(types), unknown_token_id=0, bos_token_id=1) | {
        "tokenizer.ggml.scores": scores, "tokenizer.chat_template": PHI3_TEMPLATE,
    }  # fmt: skip
    return gguf_tokenizer(values | {f"general.{key}": value for key, value in general.items()}, FILE)


@pytest.mark.parametrize(
    "general",
    [{"name": "Phi 3.5 Mini Instruct", "architecture": "phi3"}, {"name": "my-Phi3-tune"}, {"name": "Phi-3-mini"}],
)
def test_the_special_tokens_of_phi3_take_the_space_after_them(general: dict[str, str]) -> None:
    from loradesk_engine.commands import Message

    ours, reference = phi3(**general), published_phi3()
    conversation = "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert ours.chat_ids([Message("user", "Hi")]) == reference.encode(conversation, add_special_tokens=False).ids
    for text in (conversation, "<s> Hi</s>  Hi", "<|endoftext|>\nHi", "<|end|> \n\t Hi <|user|>"):
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids, text


def test_other_models_keep_the_space() -> None:
    assert "\n" in [PHI3_TOKENS[token] for token in phi3(name="Llama").encode("<|user|>\nHi")]
