"""Text out of tokens, chat templates in, and stop strings: nothing split, nothing that hangs."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from support import tiny

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError
from loradesk_engine.formats import template as template_module
from loradesk_engine.formats.sandbox import Sandbox
from loradesk_engine.formats.template import ChatTemplate
from loradesk_engine.formats.tokenizer import TextStream, Tokenizer, read_tokenizer
from loradesk_engine.generation.stop import StopStrings
from loradesk_resources import resource_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return read_tokenizer(folder)


@given(ids=st.lists(st.integers(0, tiny.VOCABULARY - 1), max_size=40))
@example(ids=list("naïve 🦊 “quote” 日本".encode()))
@example(ids=[0xF0, 0x9F, 0xA6, 0x8A])
@example(ids=[0xF0, 0x9F, 256, 0xA6, 0x8A])
@example(ids=[0xEF, 0xBF, 0xBD, 65])
@example(ids=[0xFF, 0xFF, 65, 0xE2, 0x82])
def test_streamed_text_is_the_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_a_character_comes_whole_and_at_once(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.add(byte) for byte in "a🦊b".encode()] == ["a", "", "", "", "🦊", "b"]


def sentencepiece() -> Tokenizer:
    """As Llama 2 writes it: signs for spaces, bytes for what is no piece, no space before the first word."""
    pieces = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    pieces |= {piece: 257 + place for place, piece in enumerate(["\u2581", "a", "b", "\u2581a", "ab", "é"])}
    merges = [("\u2581", "a"), ("a", "b")]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    steps = tokenizers.decoders
    backend.decoder = steps.Sequence(
        [steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>"])
    backend.add_tokens(["\u2581added"])
    return Tokenizer(backend, None, "made here")


@pytest.mark.parametrize("text", ["ab ab", "naïve é", "日本 🦊 a", "  a", "<s>ab", "a\u2581addedb", "\0\n\t"])
def test_the_bytes_of_the_tokens_are_those_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    demo = read_tokenizer(resource_path("demo") / "base")
    for one, first in ((tokenizer, ""), (demo, ""), (sentencepiece(), " ")):
        ids = one.encode(text)
        data = b"".join(map(one.token_bytes, ids))
        assert data.removeprefix(first.encode()).decode() == one.decode(ids, skip_special_tokens=False)
        assert [one.token_text(token) for token in ids] == [
            one.token_bytes(token).decode("utf-8", "replace") for token in ids
        ]


def test_an_id_that_only_pads_the_vocabulary_stands_for_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tiny.VOCABULARY + 5) == b""
    assert tokenizer.token_text(tiny.VOCABULARY + 5) == ""


@given(
    text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_stop_strings_cut_where_the_first_one_begins(text: str, stops: list[str], data: st.DataObject) -> None:
    stop = StopStrings(stops)
    shown, rest, met = "", text, False
    while rest and not met:
        size = data.draw(st.integers(1, len(rest)))
        piece, met = stop.add(rest[:size])
        shown, rest = shown + piece, rest[size:]
    if not met:
        shown += stop.finish()
    if any(one in text for one in stops):
        assert met
        # the earliest end of a stop string decides, since text comes from the left
        end = min(text.index(one) + len(one) for one in stops if one in text)
        assert text.startswith(shown)
        assert len(shown) < end
        assert not any(one in shown for one in stops)
    else:
        assert not met
        assert shown == text


MESSAGES = (Message("system", "Be brief."), Message("user", "Hi <there> & 'you'"), Message("assistant", "Hello"))
HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "50 MB of output": "{% for a in range(5000) %}{{ 'x' * 10000 }}{% endfor %}",
    "a huge product": "{{ 'x' * 10000000000 }}",
    "a huge power": "{{ 9 ** 9 ** 9 }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format method": "{{ '{:1000000000}'.format(1) }}",
    "centering": "{{ 'x' | center(10000000000) }}",
    "centering by method": "{{ 'x'.center(10000000000) }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a large range": "{{ range(10000000000) | list | length }}",
    "private attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changing the messages": "{{ messages.append(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "an undefined call": "{{ nothing() }}",
    "joining": "{{ (['xxxxxxxxxx'] * 1000000) | join('yyyyyyyyyyyyyyyyyyyy') }}",
    "replacing": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "a list that holds itself over and over": (
        "{% set n = namespace(x=['x']) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}"
    ),
    "the same as JSON": (
        "{% set n = namespace(x=['x']) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}"
    ),
    "the same as text": (
        "{% set n = namespace(x=['x']) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
        "{{ (n.x|string)|length }}"
    ),
    "a wide format filter": "{{ '%1000000000d' | format(1) }}",
    "a precise format": "{{ '%.1000000000f' % 1 }}",
    "a width from the values": "{{ '%*d' % (1000000000, 1) }}",
    "a width behind a name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "a width behind a name with brackets": "{{ '%((a))1000000000d' % {'(a)': 1} }}",
    "a format that is slow to read": "{{ ('%' + '0' * 7000000 + '!') % 1 }}",
    "a power by rounding": "{{ 1 | round(1000000000, 'floor') }}",
    "joining an iterator": "{% set s = 'a' * 8000000 %}{{ ([s] * 2000) | reverse | join }}",
    "joining an iterator by method": "{% set s = 'a' * 8000000 %}{{ ''.join(([s] * 2000) | reverse) }}",
    "joining what is mapped": "{% set s = 'a' * 8000000 %}{{ ([s] * 2000) | map('string') | join }}",
    "bytes of a text": "{{ ('a'.encode() * 10000000000) | length }}",
    "bytes of a number": "{{ (1).to_bytes(8000000000, 'big') | length }}",
    "a text formatted many times": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000} }}",
    "a format method with a width from the values": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a format method by map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "a text formatted many times by method": "{{ ('{0}' * 100000).format('x' * 1000) }}",
    "a wide indentation": "{{ 'a\\nb' | indent(1000000000) }}",
    "a wide indentation by text": "{{ ('a\\n' * 1000) | indent('x' * 100000, first=true) }}",
    "indenting the messages": "{{ messages | indent }}",
    "wide JSON": "{{ messages | tojson(indent=1000000000) }}",
    "JSON with long separators": "{{ range(1000) | list | tojson(separators=['x' * 100000, ':']) }}",
    "adding up lists": "{{ ([range(1000) | list] * 90000) | sum(start=[]) | length }}",
    "a block that collects": "{% set x %}{% for a in range(90000) %}{{ 'x' * 100000 }}{% endfor %}{% endset %}",
    "a macro that collects": (
        "{% macro f() %}{% for a in range(90000) %}" + "x" * 100_000 + "{% endfor %}{% endmacro %}{{ f() | length }}"
    ),
    "generation that collects": (
        "{% generation %}{% for a in range(90000) %}" + "x" * 100_000 + "{% endfor %}{% endgeneration %}"
    ),
    "a break outside a loop": "{% break %}",
    "a block that leaves its loop": "{% for a in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "loops beyond what Python nests": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "it says no": "{{ raise_exception('roles must alternate') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.5)
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError) as caught:
            ChatTemplate(HOSTILE[name], file="config.json", special_tokens={}).render(MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()
    assert (caught.value.file, caught.value.field) == ("config.json", "chat_template")
    if name == "it says no":
        assert "roles must alternate" in caught.value.problem


def test_the_sandbox_is_the_immutable_one() -> None:
    assert issubclass(Sandbox, ImmutableSandboxedEnvironment)


def test_named_templates_and_the_jinja_file(tmp_path: Path) -> None:
    import json

    tiny.write_tokenizer(tmp_path)
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    template = read_tokenizer(tmp_path).template
    assert template is not None
    assert template.render(MESSAGES) == "plain"
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    template = read_tokenizer(tmp_path).template
    assert template is not None
    assert template.render(MESSAGES) == "file"
