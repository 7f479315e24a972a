"""Reading and writing: nothing is lost, and what is wrong is named with its place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import processor_time

from loradesk_engine.errors import OrderingError
from loradesk_engine.ordering import schema
from loradesk_engine.ordering.modules import linear_modules, match_targets, number_layers
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits and permissions")

MISTRAL_RS_LORA = (
    '{"base_model_id": "HuggingFaceH4/zephyr-7b-beta", "order": ["adapter_1"], '
    '"preload_adapters": [{"name":"adapter_2","adapter_model_id":"lamm-mit/x-lora"}]}'
)
"""A LoRA file in the mixed layout in which mistral.rs publishes its own."""

LAYOUTS = [
    MISTRAL_RS_LORA,
    "  {}\n\n",
    '{"base_model_id":"b","order":[],"layers":{},"preload_adapters":[]}',
    '{"order": null, "base_model_id": "b", "layers": null, "preload_adapters": null}',
    '{\n\t"base_model_id": "b",\n\t"order": ["a", "b"],\n\t"layers": {\n\t\t"x.y": 0,\n\t\t"x.z": 1\n\t}\n}\n',
    '{\r\n    "base_model_id": "b",\r\n    "layers": {"x": 0, "y": 1},\r\n    "zz": [1.50, 1e3, -0.0]\r\n}\r\n',
    '\ufeff{"base_model_id": "\\u00e9", "note": "\\ud83d\\ude00 \\/", "deep": {"a": [[], {"b": null}]}}',
    '{ "base_model_id" : "b" , "order" : [ "é" ] , "unknown" : 12345678901234567890123 }',
]


@pytest.mark.parametrize("text", LAYOUTS)
def test_an_unchanged_file_is_the_same_bytes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_bytes(text.encode())
    ordering = OrderingFile.read(path)
    ordering.write(path)
    assert path.read_bytes() == text.encode()
    same = ordering.replace(
        base_model_id=ordering.base_model_id if ordering.value("base_model_id") is not None else schema.KEEP,
        order=ordering.order,
        layers=ordering.layers,
        preload_adapters=ordering.preload_adapters,
    )
    assert same == ordering
    assert same.dumps() == text


def test_an_edit_changes_its_own_characters_only() -> None:
    ordering = OrderingFile.parse(MISTRAL_RS_LORA)
    assert ordering.replace(order=["adapter_1", "new"]).dumps() == MISTRAL_RS_LORA.replace(
        '["adapter_1"]', '["adapter_1", "new"]'
    )
    entry = PreloadAdapter("adapter_3", "x")
    assert ordering.replace(preload_adapters=[*(ordering.preload_adapters or ()), entry]).dumps() == (
        MISTRAL_RS_LORA[:-2] + ', {"name":"adapter_3","adapter_model_id":"x"}]}'
    )
    pretty = '{\n  "zzz": 1.0,\n  "base_model_id": "b",\n  "layers": {\n    "a": 0,\n    "b": 1\n  }\n}\n'
    moved = OrderingFile.parse(pretty).replace(layers={"a": 1, "b": 0})
    assert moved.dumps() == pretty.replace('"a": 0', '"a": 1').replace('"b": 1', '"b": 0')
    added = OrderingFile.parse(pretty).replace(order=["x"])
    assert added.dumps() == pretty.replace("  }\n}", '  },\n  "order": [\n    "x"\n  ]\n}')
    assert added.replace(order=None).dumps() == pretty
    windows = pretty.replace("\n", "\r\n")
    assert OrderingFile.parse(windows).replace(order=["x"]).dumps() == added.dumps().replace("\n", "\r\n")


def test_further_keys_of_a_preload_adapter_are_kept() -> None:
    text = '{"base_model_id": "b", "preload_adapters": [{"name": "n", "adapter_model_id": "i", "alpha": 2.50}]}'
    ordering = OrderingFile.parse(text)
    changed = ordering.replace(preload_adapters=[PreloadAdapter("n", "other"), PreloadAdapter("m", "i")])
    assert changed.dumps() == text.replace('"i"', '"other"').replace(
        "2.50}", '2.50}, {"name": "m", "adapter_model_id": "i"}'
    )


def test_ascii_files_stay_ascii() -> None:
    ordering = OrderingFile.parse('{"base_model_id": "b", "order": ["\\u00e9"]}').replace(order=["é", "ü"])
    assert ordering.dumps() == '{"base_model_id": "b", "order": ["\\u00e9", "\\u00fc"]}'


def test_a_new_file_has_one_entry_a_line() -> None:
    ordering = OrderingFile("b", ["é"], {"x": 0}, [PreloadAdapter("n", "i")])
    assert ordering.dumps() == json.dumps(json.loads(ordering.dumps()), indent=2, ensure_ascii=False) + "\n"
    assert ordering == OrderingFile.parse(ordering.dumps())


def test_fields() -> None:
    ordering = OrderingFile.parse(MISTRAL_RS_LORA, file="o.json")
    assert ordering.base_model_id == "HuggingFaceH4/zephyr-7b-beta"
    assert ordering.order == ("adapter_1",)
    assert ordering.layers is None
    assert ordering.preload_adapters == (PreloadAdapter("adapter_2", "lamm-mit/x-lora"),)
    assert ordering.file == "o.json"
    with pytest.raises(AttributeError):
        ordering.order = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        OrderingFile("b", layers={"x": 0}).layers["x"] = 1  # type: ignore[index]


DEEP = "[" * 5000 + "]" * 5000
BAD = [
    ("", "line 1, column 1", "empty"),
    (" \n", "line 1, column 1", "empty"),
    ("{", "line 1, column 2", "Not valid JSON"),
    ('{"base_model_id": "b",\n "order": ["a" "b"]}', "line 2, column 16", "delimiter"),
    ('{"base_model_id": "b",}', "line 1, column 23", "property name"),
    ('{\n  "base_model_id": "b"\n} x', "line 3, column 3", "Extra data"),
    ("{'base_model_id': 1}", "line 1, column 2", "double quotes"),
    ('{"a": "\x01"}', "line 1, column 8", "control character"),
    ("[]", "line 1, column 1", "not an array"),
    ("\n null", "line 2, column 2", "not null"),
    ('{"order": ["a"],\n "order": ["b"]}', "line 2, column 2", "'order' appears twice"),
    ('{"layers": {"a": 0,\n "b": 1, "\\u0061": 2}}', "line 2, column 10", "'a' appears twice"),
    ('{"x": {"layers": {"a": 0}}, "y": [{"k": 1, "k": 2}]}', "line 1, column 44", "'k' appears twice"),
    ('{"layers":\n {"a": 1e999}}', "line 2, column 8", "1e999 is too large"),
    ('{"x": NaN}', "line 1, column 7", "NaN is not a JSON number"),
    ('{"x": [-Infinity]}', "line 1, column 8", "-Infinity is not a JSON number"),
    ('{"x": ' + "9" * 5000 + "}", "line 1, column 7", "5,000 digits"),
    ('{"layers": {"a": 9999999999}}', "line 1, column 18 (layers.a)", "out of range"),
    ('{"layers": {"a": 1.0}}', "line 1, column 18 (layers.a)", "not 1.0"),
    ('{"layers": {"a": true}}', "line 1, column 18 (layers.a)", "not a boolean"),
    ('{"layers": {"a": "1"}}', "line 1, column 18 (layers.a)", "not a string"),
    ('{"layers": ["a"]}', "line 1, column 12 (layers)", "not an array"),
    ('{"base_model_id": 3}', "line 1, column 19 (base_model_id)", "not a number"),
    ('{"order": "a"}', "line 1, column 11 (order)", "list of adapter names"),
    ('{"order": ["a",\n  7]}', "line 2, column 3 (order[1])", "not a number"),
    ('{"order": ["\\ud800"]}', "line 1, column 12 (order[0])", "Unicode"),
    ('{"layers": {"\\ud800": 0}}', "line 1, column 12 (layers)", "Unicode"),
    ('{"preload_adapters": {}}', "line 1, column 22 (preload_adapters)", "A list"),
    ('{"preload_adapters": ["a"]}', "line 1, column 23 (preload_adapters[0])", "An object"),
    (
        '{"preload_adapters": [{"name": "a", "adapter_model_id": "b"},\n{"name": "c"}]}',
        "line 2, column 1 (preload_adapters[1])",
        "adapter_model_id is missing",
    ),
    (
        '{"preload_adapters": [{"name": null, "adapter_model_id": "b"}]}',
        "line 1, column 32 (preload_adapters[0].name)",
        "not null",
    ),
    ('{"x": ' + DEEP + "}", "line 1, column 906", "nested too deeply"),
    ('{"x": ' + "[" * 150 + "]" * 150 + "}", "line 1, column 7 (x)", "nested more than 100"),
]


@pytest.mark.parametrize(("text", "field", "problem"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_named_with_its_place(text: str, field: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(OrderingError) as caught:
        OrderingFile.read(path)
    assert caught.value.file == str(path)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert caught.value.remedy
    assert len(str(caught.value)) < 400 + len(str(path))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(b'{"order":\n ["\xe9"]}')
    with pytest.raises(OrderingError, match="line 2, column 4: Not UTF-8 text: the byte 0xe9"):
        OrderingFile.read(path)
    path.write_bytes('{"order": []}'.encode("utf-16"))
    with pytest.raises(OrderingError, match="line 1, column 1: Not UTF-8"):
        OrderingFile.read(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OrderingError, match="does not exist"):
        OrderingFile.read(tmp_path / "none.json")
    with pytest.raises(OrderingError, match="is a folder"):
        OrderingFile.read(tmp_path)


def test_wrong_values_in_an_edit_are_refused(small: OrderingFile) -> None:
    for changes in (
        {"base_model_id": 3},
        {"order": "ab"},
        {"order": [1]},
        {"order": ["\ud800"]},
        {"layers": {"a": 1.5}},
        {"layers": {3: 1}},
        {"layers": {"a": 2**40}},
        {"preload_adapters": ["a"]},
        {"preload_adapters": [PreloadAdapter("a", 3)]},  # type: ignore[arg-type]
    ):
        with pytest.raises(OrderingError):
            small.replace(**changes)  # type: ignore[arg-type]


# Writing


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "o.json"
    path.write_text(MISTRAL_RS_LORA)
    return path


def refused(ordering: OrderingFile, path: Path, problem: str) -> None:
    """Writing fails with the message, the old content stays, and no temporary file is left."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(OrderingError, match=problem) as caught:
        ordering.write(path)
    assert caught.value.remedy
    assert (path.read_bytes() if path.is_file() else None) == before
    assert not list(path.parent.glob(".*.tmp")) if path.parent.is_dir() else True


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "No permission"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_a_system_that_refuses(
    old: Path, small: OrderingFile, monkeypatch: pytest.MonkeyPatch, number: int, problem: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    refused(small, old, problem)


@POSIX
def test_a_full_disk(old: Path) -> None:
    """A process that may not write more than 64 bytes: the system itself stops the write half-way."""
    program = (
        "import resource, signal, sys\n"
        "from loradesk_engine.ordering.schema import OrderingFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "OrderingFile('b', [str(n) for n in range(100)]).write(sys.argv[1])\n"
    )
    before = old.read_bytes()
    done = subprocess.run([sys.executable, "-c", program, str(old)], capture_output=True, text=True, check=False)
    assert "OrderingError" in done.stderr
    assert "no space left" in done.stderr
    assert old.read_bytes() == before
    assert os.listdir(old.parent) == [old.name]


def test_folders_that_are_not_there(tmp_path: Path, small: OrderingFile) -> None:
    refused(small, tmp_path / "none" / "o.json", "folder does not exist")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OrderingError, match="folder"):
        small.write(tmp_path / "folder")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder whose permissions a test may take away; pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
        path.chmod(0o700)


@contextlib.contextmanager
def powerless() -> Iterator[None]:
    """Root may read and write everything, so it becomes nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@POSIX
def test_no_permission(unprivileged: Path, small: OrderingFile) -> None:
    path = unprivileged / "o.json"
    path.write_text(MISTRAL_RS_LORA)
    path.chmod(0)
    with powerless(), pytest.raises(OrderingError, match="No permission to read the file"):
        OrderingFile.read(path)
    path.chmod(0o644)
    unprivileged.chmod(0o555)
    with powerless():
        assert OrderingFile.read(path).dumps() == MISTRAL_RS_LORA
        refused(small, path, "No permission to write here. Nothing was changed")


@POSIX
def test_a_link_keeps_pointing_at_its_file(old: Path, small: OrderingFile, tmp_path: Path) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(old.name)
    small.write(link)
    assert link.is_symlink()
    assert OrderingFile.read(old) == small


# Size and random edits


@pytest.fixture
def big() -> OrderingFile:
    """10,000 layers and 500 adapters."""
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1429}
    layers = number_layers(match_targets(linear_modules(config), "all-linear")[:10_000])
    names = [f"adapter_{n}" for n in range(500)]
    return OrderingFile("org/base", names, layers, [PreloadAdapter(name, f"org/{name}") for name in names])


def test_a_big_file_opens_quickly(big: OrderingFile, tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    big.write(path)
    with processor_time(5.0):
        ordering = OrderingFile.read(path)
    assert len(ordering.layers or ()) == 10_000
    assert ordering == big
    edited = ordering.replace(layers={**(ordering.layers or {}), "more": 10_000})
    with processor_time(5.0):
        edited.write(path)
    assert OrderingFile.read(path) == edited


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers() | FLOATS | st.text('aé"\\\n')
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("kü/~"), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "base_model_id": TEXT | st.none(),
        "order": st.none() | st.lists(TEXT, max_size=4),
        "layers": st.none() | st.dictionaries(TEXT, st.integers(-5, 9), max_size=5),
        "preload_adapters": st.none()
        | st.lists(
            st.fixed_dictionaries({"name": TEXT, "adapter_model_id": TEXT}, optional={"extra": JSON_VALUES}), max_size=3
        ),
        "extra": JSON_VALUES,
        "": JSON_VALUES,
    },
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Ordering files in many layouts."""
    data = draw(FIELDS)
    keys = draw(st.permutations(list(data)))
    text = json.dumps(
        {key: data[key] for key in keys},
        indent=draw(st.sampled_from([None, None, 1, 2, 4, "\t"])),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,  ", " : ")])),
    )
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return draw(st.sampled_from(["", "\ufeff", " \n"])) + text + draw(st.sampled_from(["", "\n", "\n\n "]))


@st.composite
def edits(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `replace`."""
    preloads = st.lists(st.builds(PreloadAdapter, TEXT, TEXT), max_size=3)
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "base_model_id": TEXT,
                "order": st.none() | st.lists(TEXT, max_size=5),
                "layers": st.none() | st.dictionaries(TEXT, st.integers(-5, 9), max_size=6),
                "preload_adapters": st.none() | preloads,
            },
        )
    )


@given(text=texts(), changes=st.lists(edits(), max_size=3))
def test_any_file_is_kept_and_any_edit_survives(text: str, changes: list[dict[str, Any]]) -> None:
    ordering = OrderingFile.parse(text)
    assert ordering.dumps() == text
    for change in changes:
        ordering = ordering.replace(**change)
        reopened = OrderingFile.parse(ordering.dumps())
        assert reopened == ordering
        assert reopened.order == ordering.order
        assert reopened.layers == ordering.layers
        assert reopened.preload_adapters == ordering.preload_adapters
        assert reopened.base_model_id == ordering.base_model_id


@given(text=texts(), data=st.data())
def test_damaged_files_are_refused_or_read(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 5)))
    damaged = text[:start] + data.draw(st.text('{}[]:,"\\0n-eE.', max_size=3)) + text[end:]
    field, kept = "", damaged
    try:
        kept = OrderingFile.parse(damaged).dumps()
    except OrderingError as problem:
        field = problem.field or "none"
    assert kept == damaged
    assert field.startswith("line ") or not field


def places(value: Any, parts: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield parts, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*parts, key))


@given(text=texts())
def test_every_place_is_found_in_the_text(text: str) -> None:
    ordering = OrderingFile.parse(text)
    lines = text.removeprefix("\ufeff").split("\n")
    for parts, value in places(json.loads(text.removeprefix("\ufeff"))):
        position = ordering.position(schema.pointer(*parts))
        assert position is not None
        rest = "\n".join([lines[position[0] - 1][position[1] - 1 :], *lines[position[0] :]])
        assert json.JSONDecoder().raw_decode(rest)[0] == value
    assert ordering.position("/no/such/place") is None
