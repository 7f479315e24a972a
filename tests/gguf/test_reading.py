"""Files written by the gguf package read back as they were written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from support.clock import PATIENCE

from loradesk_engine.formats.gguf import BLOCKS, GgufFile, read_gguf

SCALARS = {
    "UINT8": 200, "INT8": -100, "UINT16": 60_000, "INT16": -30_000, "UINT32": 4_000_000_000, "INT32": -2_000_000_000,
    "UINT64": 2**64 - 1, "INT64": -(2**63), "FLOAT32": 0.25, "FLOAT64": 0.1, "BOOL": True, "STRING": "Zürich 🦙\n",
}  # fmt: skip
NUMBER_DTYPES = {
    "UINT8": np.uint8, "INT8": np.int8, "UINT16": np.uint16, "INT16": np.int16, "UINT32": np.uint32, "INT32": np.int32,
    "UINT64": np.uint64, "INT64": np.int64, "FLOAT32": np.float32, "FLOAT64": np.float64, "BOOL": np.bool_,
}  # fmt: skip
PLAIN = {
    "F32": np.float32, "F16": np.float16, "F64": np.float64,
    "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip


def write(path: Path, metadata: dict[str, tuple[Any, ...]], tensors: dict[str, np.ndarray], alignment: int = 0) -> None:
    """Tensors of plain types are stored as they are, `name` naming the type; others are bytes of that type."""
    writer = GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value in metadata.items():
        writer.add_key_value(key, *value)
    for name, tensor in tensors.items():
        kind = name.split(".")[0]
        writer.add_tensor(name, tensor, raw_dtype=None if kind in PLAIN else GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    result: dict[str, np.ndarray] = {}
    for kind, (_, size) in BLOCKS.items():
        for label, shape in (("vector", (3,)), ("matrix", (5, 2)), ("cube", (2, 3, 1)), ("hyper", (2, 1, 3, 2))):
            raw = rng.integers(0, 256, (*shape[:-1], shape[-1] * size), np.uint8)
            result[f"{kind}.{label}"] = raw.view(PLAIN[kind]) if kind in PLAIN else raw
    return result


@pytest.mark.parametrize("kind", list(SCALARS))
def test_a_value_of_every_type(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "a.gguf", {"some.key": (SCALARS[kind], GGUFValueType[kind])}, {})
    value = read_gguf(tmp_path / "a.gguf").metadata["some.key"]
    assert value == SCALARS[kind]
    assert type(value) is type(SCALARS[kind])


@pytest.mark.parametrize("kind", list(NUMBER_DTYPES))
def test_an_array_of_every_type_of_number(tmp_path: Path, kind: str) -> None:
    written = [SCALARS[kind], NUMBER_DTYPES[kind](0).item(), SCALARS[kind]]
    write(tmp_path / "a.gguf", {"some.key": (written, GGUFValueType.ARRAY, GGUFValueType[kind])}, {})
    value = read_gguf(tmp_path / "a.gguf").metadata["some.key"]
    assert isinstance(value, np.ndarray)
    assert value.dtype == NUMBER_DTYPES[kind]
    assert value.tolist() == written


@pytest.mark.parametrize(
    "written",
    [
        ["", "a", "Ġhello", "x" * 5000, "\u0000", "🦙"],
        [["a", "b"], ["c"]],
        [[["a"]], [["b", "c"], [""]]],
    ],
)
def test_arrays_of_strings_and_of_arrays_are_lists(tmp_path: Path, written: list[Any]) -> None:
    write(tmp_path / "a.gguf", {"some.key": (written, GGUFValueType.ARRAY)}, {})
    assert read_gguf(tmp_path / "a.gguf").metadata["some.key"] == written


def test_arrays_of_arrays_of_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {"some.key": ([[1, 2], [3]], GGUFValueType.ARRAY)}, {})
    value = read_gguf(tmp_path / "a.gguf").metadata["some.key"]
    assert [numbers.tolist() for numbers in value] == [[1, 2], [3]]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [0, 8, 64, 4096])
def test_tensors_of_every_type(tmp_path: Path, tensors: dict[str, np.ndarray], alignment: int, version: int) -> None:
    path = tmp_path / "a.gguf"
    write(path, {}, tensors, alignment)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(version.to_bytes(4, "little"))
    model = read_gguf(path)
    assert list(model.tensors) == list(tensors)
    for name, written in tensors.items():
        tensor, raw = model.tensors[name], model.raw(name)
        kind = name.split(".")[0]
        assert (tensor.name, tensor.type, tensor.nbytes) == (name, kind, written.nbytes)
        elements, size = BLOCKS[kind]
        row = written.nbytes // int(np.prod(written.shape[:-1], dtype=int))
        assert tensor.shape == (*written.shape[:-1], row // size * elements)
        assert raw.dtype == np.uint8
        assert raw.ndim == 1
        assert raw.tobytes() == written.tobytes()


def test_the_gguf_package_finds_the_same(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write(tmp_path / "a.gguf", {}, tensors)
    assert_same(read_gguf(tmp_path / "a.gguf"), GGUFReader(tmp_path / "a.gguf"))


def test_the_demo_model() -> None:
    from loradesk_resources import demo

    path = Path(demo.__path__[0]) / "base-q8_0.gguf"
    assert_same(read_gguf(path), GGUFReader(path))


def assert_same(ours: GgufFile, theirs: GGUFReader) -> None:
    fields = {key: value.contents() for key, value in theirs.fields.items() if not key.startswith("GGUF.")}
    assert {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in ours.metadata.items()} == fields
    assert len(ours.tensors) == len(theirs.tensors)
    for tensor in theirs.tensors:
        entry = ours.tensors[tensor.name]
        assert entry.type == tensor.tensor_type.name
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert (entry.start, entry.nbytes) == (tensor.data_offset, tensor.n_bytes)


def test_tensors_are_mapped_and_never_written_back(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {}, {"F32.a": np.ones((4, 8), np.float32)})
    before = (tmp_path / "a.gguf").read_bytes()
    model = read_gguf(tmp_path / "a.gguf")
    raw = model.raw("F32.a")
    assert np.shares_memory(raw, model.raw("F32.a"))
    del model
    assert raw.view(np.float32).sum() == 32  # a view keeps the mapping
    raw[:] = 0
    assert (tmp_path / "a.gguf").read_bytes() == before


def test_a_file_without_tensors_needs_no_padding(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {"odd": (1, GGUFValueType.UINT8)}, {})
    assert dict(read_gguf(tmp_path / "a.gguf").tensors) == {}


def test_an_unknown_tensor_is_a_key_error(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", {}, {})
    with pytest.raises(KeyError):
        read_gguf(tmp_path / "a.gguf").raw("none")


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for name, sizes in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]] == sizes


def test_reading_needs_no_torch() -> None:
    code = (
        "import sys, loradesk_engine.formats.gguf; assert 'torch' not in sys.modules; assert 'gguf' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
