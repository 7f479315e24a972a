"""Text out of tokens, chat templates in, and stop strings: nothing split, nothing that hangs."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Namespace
from support import tiny
from support.clock import processor_time
from support.limits import CPU_SECONDS, limited_memory

from loradesk_engine.commands import Message
from loradesk_engine.errors import TemplateError
from loradesk_engine.formats import sandbox as sandbox_module
from loradesk_engine.formats import template as template_module
from loradesk_engine.formats.sandbox import Sandbox
from loradesk_engine.formats.sandbox_sizes import MAX_CHARACTERS, size_of
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


def nesting(name: str, step: str = "[n.x, n.x]", start: str = "[1]", times: int = 60) -> str:
    """Template that builds a value which holds itself over and over."""
    loop = "{% for i in range(" + str(times) + ") %}{% set n.x = " + step + " %}{% endfor %}"
    return "{% set n = namespace(x=" + start + ") %}" + loop + "{% set " + name + " = n.x %}"


LISTS = nesting("a") + nesting("b")
TUPLES = nesting("a", "(n.x, n.x)", "(1,)") + nesting("b", "(n.x, n.x)", "(1,)")
LATE = "{% set n = namespace(a='') %}{% set l = [n] * 100 %}{% set n.a = 'a' * 4000000 %}"  # full after it was counted
COLLIDING = f"range(0, {(2**61 - 1) * 100_000}, {2**61 - 1})"  # the hash of each is 0
TOO_LARGE = {
    "a huge product": "{{ 'x' * 10000000000 }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "a wide format method": "{{ '{:1000000000}'.format(1) }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "joining": "{{ (['xxxxxxxxxx'] * 100000) | join('y' * 200) }}",
    "joining an attribute": LATE + "{{ l | join(attribute='a') }}",
    "joining an iterator": LATE + "{{ l | map(attribute='a') | join }}",
    "joining an iterator by method": LATE + "{{ ''.join(l | map(attribute='a')) }}",
    "joining with a list": LATE + "{{ [1, 2] | join(l) }}",
    "joining the characters of a text": "{{ ('中' * 8000000) | join }}",
    "joining the characters of a text by method": "{{ ''.join('中' * 8000000) }}",
    "replacing": "{{ ('x' * 100000) | replace('x', 'y' * 100000) }}",
    "replacing a list": LATE + "{{ 'a' | replace('b', l) }}",
    "a list that holds itself over and over": nesting("a", start="['x']") + "{{ a }}",
    "the same as JSON": nesting("a", start="['x']") + "{{ a | tojson }}",
    "the same as text": nesting("a", start="['x']") + "{{ (a | string) | length }}",
    "a dict that holds itself over and over": nesting("a", "{'a': n.x, 'b': n.x}"),
    "a dict that holds itself over and over by call": nesting("a", "dict(a=n.x, b=n.x)"),
    "a list that is added to itself": nesting("a", "[n.x] + [n.x]"),
    "a list that is multiplied": nesting("a", "[n.x] * 2"),
    "a cycle that holds itself over and over": nesting("a", "cycler(n.x, n.x).items"),
    "arguments that hold themselves over and over": (
        "{% set n = namespace(x=1) %}{% macro f() %}{% set n.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ f(n.x, n.x) }}{% endfor %}"
    ),
    "many lists out of one by attribute": (
        "{% set n = namespace(a=[1]) %}"
        "{% for i in range(4) %}{% set n.a = ([n] * 3000) | map(attribute='a') | list %}{% endfor %}"
    ),
    "comparing": LISTS + "{{ a == b }}",
    "comparing by order": LISTS + "{{ a < b }}",
    "looking into a list": LISTS + "{{ a in [b] }}",
    "comparing by a test": LISTS + "{{ a is eq b }}",
    "looking into a list by a test": LISTS + "{{ a is in [b] }}",
    "comparing by select": LISTS + "{{ [a] | select('eq', b) | list }}",
    "comparing by index": LISTS + "{{ [a].index(b) }}",
    "comparing by count": LISTS + "{{ [a].count(b) }}",
    "comparing by sort": LISTS + "{{ [a, b] | sort }}",
    "comparing by min": LISTS + "{{ [a, b] | min }}",
    "comparing by groupby": LISTS + "{{ [{'k': a}, {'k': b}] | groupby('k') }}",
    "comparing by dictsort": LISTS + "{{ {'a': a, 'b': b} | dictsort(by='value') }}",
    "comparing by loop": LISTS + "{% for i in [a, b] %}{{ loop.changed(i) }}{% endfor %}",
    "hashing by unique": TUPLES + "{{ [a, b] | unique | list }}",
    "hashing a key": TUPLES + "{{ {a: 1} }}",
    "hashing a key by call": TUPLES + "{{ dict([(a, 1)]) }}",
    "hashing what is looked up": TUPLES + "{{ {}.get(a) }}",
    "quoting a key that is missing": TUPLES + "{{ [1][a].x }}",
    "a tuple that is too deep for the stack": nesting("a", "(" * 40 + "n.x" + ",)" * 40, "1", 9999) + "{{ {a: 1} }}",
    "many namespaces as text": LATE + "{{ l | string }}",
    "many namespaces": LATE + "{{ l }}",
    "many namespaces in upper case": LATE + "{{ l | upper }}",
    "many namespaces trimmed": LATE + "{{ l | trim }}",
    "many namespaces in a test": LATE + "{{ l is lower }}",
    "many namespaces in a format": LATE + "{{ '{0}'.format(l) }}",
    "many namespaces as a format": LATE + "{{ l | format(1) }}",
    "many namespaces as an error": LATE + "{{ raise_exception(l) }}",
    "many namespaces as a time": LATE + "{{ strftime_now(l) }}",
    "many namespaces as a key": LATE.replace("[n]", "(n,)") + "{{ [1][l].x }}",
    "a namespace that cannot be called": (
        "{% set n = namespace(a='') %}{% set m = namespace(l=[n] * 100, unsafe_callable=true) %}"
        "{% set n.a = 'a' * 4000000 %}{{ m() }}"
    ),
    "a namespace in itself": "{% set n = namespace() %}{% set n.x = [n] %}{{ n }}",
    "many views": LATE.replace("[n]", "[{1: n}.items()]") + "{{ l | string }}",
    "a list of characters": "{{ ('中' * 8000000) | list }}",
    "sorted characters": "{{ ('中b' * 4000000) | sort }}",
    "characters as arguments": "{{ dict(*('中' * 8000000)) }}",
    "characters as arguments of a filter": "{{ 'a' | join(*('中' * 8000000)) }}",
    "words": "{{ ('中 ' * 4000000).split() }}",
    "lines": "{{ ('中\n' * 4000000).splitlines() }}",
    "counted words": "{{ ('中 ' * 4000000) | wordcount }}",
    "titles": "{{ ('中 ' * 4000000) | title }}",
    "indented lines": "{{ ('中\n' * 2600000) | indent(1) }}",
    "quoted for an address": "{{ ('🦊' * 8000000) | urlencode }}",
    "quoted pairs": "{{ range(9) | map('default') | urlencode }}",
    "a wide format filter": "{{ '%1000000000d' | format(1) }}",
    "a precise format": "{{ '%.1000000000f' % 1 }}",
    "a width from the values": "{{ '%*d' % (1000000000, 1) }}",
    "a width behind a name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "a format of percents": "{{ ('%%' * 4000000) % () }}",
    "a power by rounding": "{{ 1 | round(1000000000, 'floor') }}",
    "a text that is rounded": "{{ 'abcdefghij' | round(8, 'ceil') }}",
    "a number with too many digits": "{{ ('f' * 6000000) | int(base=16) }}",
    "a number with too many digits in the template": "{{ 0x" + "f" * 100_000 + " // 3 }}",
    "a format method with a width from the values": "{{ '{:{}}'.format(1, 1000000000) }}",
    "a format method by map": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "a text formatted many times by method": "{{ ('{0}' * 100000).format('x' * 1000) }}",
    "a wide indentation": "{{ 'a\\nb' | indent(1000000000) }}",
    "a wide indentation by text": "{{ ('a\\n' * 1000) | indent('x' * 100000, first=true) }}",
    "wide JSON": "{{ messages | tojson(indent=1000000000) }}",
    "long JSON with lines": "{{ ([0] * 300000) | tojson(indent=0) }}",
    "JSON with long separators": "{{ range(1000) | list | tojson(separators=['x' * 100000, ':']) }}",
    "a text formatted many times": "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000} }}",
    "a macro that collects": (
        "{% macro f() %}{% for a in range(90000) %}" + "x" * 100_000 + "{% endfor %}{% endmacro %}{{ f() | length }}"
    ),
    "generation that collects": (
        "{% generation %}{% for a in range(90000) %}" + "x" * 100_000 + "{% endfor %}{% endgeneration %}"
    ),
    "adding up lists": (
        "{% set n = namespace(a=[]) %}{% set l = [n] * 1000 %}{% set n.a = ['a'] * 50000 %}"
        "{{ l | sum(attribute='a', start=[]) }}"
    ),
}
TOO_LONG = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "keys of one hash": "{{ {" + ", ".join(f"{key}: 1" for key in itertools.product((-1, -2), repeat=13)) + "} }}",
    "keys of one hash by call": "{{ dict(" + COLLIDING + " | groupby('real')) }}",
    "keys of one hash in a namespace": "{{ namespace(" + COLLIDING + " | groupby('real')) }}",
    "a long expression": (
        "{% set a = [1] * 200000 %}{% set b = [1] * 200000 %}{{ [" + "a == b, " * 5000 + "] | length }}"
    ),
    "a long expression of tests": (
        "{% set a = [1] * 200000 %}{% set b = [1] * 200000 %}{{ [" + "a is eq b, " * 4000 + "] | length }}"
    ),
    "JSON with lines of great depth": (
        "{% set n = namespace(x=[0] * 100000) %}{% for i in range(90) %}{% set n.x = [n.x] %}{% endfor %}"
        "{% for i in range(9) %}{{ (n.x | tojson(indent=0)) | length }}{% endfor %}"
    ),
    "a source that is long to compile": "{{" + "a," * 200_000 + "}}",
}
TOO_MUCH = {
    "a block that collects": "{% set x %}{% for a in range(90000) %}{{ 'x' * 100000 }}{% endfor %}{% endset %}",
    "variables": "{% set s = 'x' * 7000000 %}" + "".join(f"{{% set v{i} = s ~ '' %}}" for i in range(100)),
    "slices": "{% set s = 'x' * 7000000 %}{% set l = [" + "s[1:], " * 100 + "] %}",
    "words in variables": (
        "{% set s = 'x' * 1999999 ~ ' ' %}" + "".join(f"{{% set v{i} = s.split() %}}" for i in range(100))
    ),
    "lists in variables": "".join(f"{{% set v{i} = ['a'] * 200000 %}}" for i in range(200)),
    "characters in variables": "".join(f"{{% set v{i} = ('中' * 100000) | list %}}" for i in range(100)),
    "escapes": "{% autoescape true %}{% set s = '\"' * 1000000 %}{% set x %}"
    + "{{ s }}" * 500
    + "{% endset %}{% endautoescape %}",
}
UNSAFE = {
    "centering by method": "{{ 'x'.center(10000000000) }}",
    "private attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "changing the messages": "{{ messages.append(1) }}",
    "bytes of a text": "{{ ('a'.encode() * 10000000000) | length }}",
    "bytes of a number": "{{ (1).to_bytes(8000000000, 'big') | length }}",
    "a number of bytes": "{{ (1).from_bytes([255] * 100000, 'big') }}",
    "tags in a text": "{{ ('<a>' | safe).striptags() }}",
    "signs in a text": "{{ ('&#3;' | safe).unescape() }}",
    "a dict from keys": "{{ {}.fromkeys(" + COLLIDING + ") }}",
    "what views share": "{{ {}.keys().isdisjoint(range(100000)) }}",
}
NOT_ALLOWED = {
    "a huge power": "{{ 9 ** 9 ** 9 }}",
    "a set": "{{ {}.keys() - " + COLLIDING + " }}",
}
SEARCHES = {
    f"{method} of a text": "{{ ('a' * 8000000)." + method + "('ab' + 'a' * 1000000) }}"
    for method in ("rfind", "rindex", "rpartition", "rsplit", "strip", "lstrip", "rstrip")
} | {"trimming": "{{ ('b' * 8000000) | trim('a' * 4000000 + 'b') }}"}
OTHERS = {
    "50 MB of output": ("{% for a in range(5000) %}{{ 'x' * 10000 }}{% endfor %}", "renders more than"),
    "centering": ("{{ 'x' | center(10000000000) }}", "No filter named 'center'"),
    "a large range": ("{{ range(10000000000) | list | length }}", "Range too big"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "an undefined call": ("{{ nothing() }}", "'nothing' is undefined"),
    "a width behind a name with brackets": ("{{ '%((a))1000000000d' % {'(a)': 1} }}", "format is not known"),
    "a format that is slow to read": ("{{ ('%' + '0' * 7000000 + '!') % 1 }}", "format is not known"),
    "indenting the messages": ("{{ messages | indent }}", "only a text can be indented"),
    "iterators too deep for the stack": (
        nesting("a", "n.x" + " | map('string')" * 40, times=9999),
        "nested too deeply",
    ),
    "a cycle of nothing": ("{{ cycler() }}", "at least one item"),
    "a break outside a loop": ("{% break %}", "outside loop"),
    "a block that leaves its loop": (
        "{% for a in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
        "outside loop",
    ),
    "loops beyond what Python nests": ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested"),
    "it says no": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
}
HOSTILE = OTHERS | {
    name: (source, message)
    for message, sources in {
        "a value that is too large": TOO_LARGE,
        "longer than": TOO_LONG,
        "steps make too much": TOO_MUCH,
        "is unsafe": UNSAFE,
        "not allowed": NOT_ALLOWED,
        "searches a large text": SEARCHES,
    }.items()
    for name, source in sources.items()
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, message = HOSTILE[name]
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.5 if name in TOO_LONG else CPU_SECONDS)
    monkeypatch.setattr(sandbox_module, "MAX_MADE", 32 * 2**20)
    with processor_time(CPU_SECONDS), limited_memory(6 * 2**20), pytest.raises(TemplateError) as caught:
        ChatTemplate(source, file="config.json", special_tokens={}).render(MESSAGES)
    assert (caught.value.file, caught.value.field) == ("config.json", "chat_template")
    assert re.search(message, caught.value.problem)


def test_a_template_of_too_many_steps_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "MAX_PYTHON", 10_000)
    ChatTemplate("{{ a }}" * 10, file="config.json", special_tokens={})
    with pytest.raises(TemplateError, match="too many steps"):
        ChatTemplate("{{ a }}" * 1000, file="config.json", special_tokens={})


def test_a_size_counts_what_is_shared_each_time() -> None:
    assert size_of("abc") == 3
    text = "a" * 1000
    namespace = Namespace(a=text)
    for value in ([text, text], {"k": [text] * 2}, [namespace, {1: text}.values()], Cycler(text, text)):
        assert 2000 < size_of(value) < 2400
    namespace["b"] = namespace
    assert size_of(namespace) > MAX_CHARACTERS


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
