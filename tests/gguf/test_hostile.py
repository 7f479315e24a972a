"""Damaged and hostile files: each is refused with the file and the field, at once, and costs no memory."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from support.clock import processor_time
from support.limits import CPU_SECONDS

from loradesk_engine.errors import FileFormatError
from loradesk_engine.formats import gguf as reader
from loradesk_engine.formats.gguf import GgufFile, read_gguf

U8, U32, BOOL, STRING, ARRAY, U64 = 0, 4, 7, 8, 9, 10
F32, Q8_0, IQ2_XXS = 0, 8, 16


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data)) + data


def array(kind: int, count: int, *items: bytes) -> bytes:
    return u32(kind) + u64(count) + b"".join(items)


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def tensor(name: str | bytes, sizes: list[int], kind: int = F32, offset: int = 0) -> bytes:
    """`sizes` in the file's order: columns first."""
    return text(name) + u32(len(sizes)) + b"".join(map(u64, sizes)) + u32(kind) + u64(offset)


def build(
    metadata: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    metadata, tensors = metadata or [], tensors or []
    tensor_count, metadata_count = counts or (len(tensors), len(metadata))
    head = magic + u32(version) + u64(tensor_count) + u64(metadata_count) + b"".join(metadata) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data if tensors else head


def nested(depth: int) -> bytes:
    return b"".join(array(ARRAY, 1) for _ in range(depth - 1)) + array(U8, 0)


def big_endian() -> bytes:
    return b"GGUF" + struct.pack(">IQQ", 3, 0, 0)


OK = tensor("a", [8])
BYTES_49 = build([entry("a", ARRAY, array(U8, 2**40))])

HOSTILE: dict[str, tuple[bytes, str, str]] = {
    # name -> content, field, part of the message
    "array of 2^40": (BYTES_49, "a", "1,099,511,627,776"),
    "array of 2^40 strings": (build([entry("a", ARRAY, array(STRING, 2**40))]), "a", "1,099,511,627,776 strings"),
    "array of 2^40 arrays": (build([entry("a", ARRAY, array(ARRAY, 2**40))]), "a", "1,099,511,627,776 arrays"),
    "array of arrays that are not there": (build([entry("a", ARRAY, array(ARRAY, 4000))]), "a", "left in the file"),
    "array of 2^64-1 doubles": (build([entry("a", ARRAY, array(12, 2**64 - 1))]), "a", "left in the file"),
    "arrays of many arrays": (
        build([entry("a", ARRAY, array(ARRAY, 3, *[array(ARRAY, 2000, *[array(U8, 0)] * 2000)] * 3))]),
        "a", "6,003 arrays inside"),
    "array five deep": (build([entry("a", ARRAY, nested(5))]), "a", "5 deep"),
    "array ten thousand deep": (build([entry("a", ARRAY, nested(10_000))]), "a", "5 deep"),
    "array of unknown type": (build([entry("a", ARRAY, array(13, 1, b"\0"))]), "a", "13"),
    "value of unknown type": (build([entry("a", 2**32 - 1, b"")]), "a", "4,294,967,295"),
    "truncated string": (build([entry("a", STRING, u64(10) + b"short")]), "a", "needs 10 bytes, 5 are left"),
    "truncated string in an array": (
        build([entry("a", ARRAY, array(STRING, 2, text("x"), u64(10), b"short"))]), "a", "needs 10 bytes, 5 are left"),
    "truncated length in an array": (
        build([entry("a", ARRAY, array(STRING, 2, text("12345678"), b"\0"))]), "a", "ends before"),
    "string of 2^63": (build([entry("a", STRING, u64(2**63))]), "a", "left in the file"),
    "string of 2^64-1": (build([entry("a", STRING, u64(2**64 - 1) + b"x" * 9)]), "a", "left in the file"),
    "string not UTF-8": (build([entry("a", STRING, text(b"\xff\xfe"))]), "a", "not UTF-8"),
    "string in an array not UTF-8": (build([entry("a", ARRAY, array(STRING, 1, text(b"\xc3")))]), "a", "not UTF-8"),
    "string of surrogates": (build([entry("a", STRING, text(b"\xed\xa0\x80"))]), "a", "not UTF-8"),
    "boolean of 2": (build([entry("a", BOOL, b"\2")]), "a", "neither 0 nor 1"),
    "booleans of 2": (build([entry("a", ARRAY, array(BOOL, 2, b"\1\2"))]), "a", "neither 0 nor 1"),
    "key not UTF-8": (build([entry(b"\xff", U8, b"\0")]), "header", "not UTF-8"),
    "key empty": (build([entry("", U8, b"\0")]), "header", "0 bytes"),
    "key of 2^62": (build([u64(2**62)]), "header", "bytes long"),
    "key a path": (build([entry("../../x", U8, b"\0")]), "../../x", "path"),
    "key twice": (build([entry("a", U8, b"\0"), entry("a", U8, b"\0")]), "a", "twice"),
    "keys 2^60": (build(counts=(0, 2**60)), "header", "metadata entries"),
    "keys missing": (build(counts=(0, 3)), "header", "left in the file"),
    "tensors 2^60": (build(counts=(2**60, 0)), "header", "tensors"),
    "tensors missing": (build(counts=(3, 0)), "header", "left in the file"),
    "alignment 2^31": (
        build([entry("general.alignment", U32, u32(2**31))], [OK], bytes(32)), "general.alignment", "2,147,483,648"),
    "alignment 0": (build([entry("general.alignment", U32, u32(0))]), "general.alignment", "power of two"),
    "alignment 4": (build([entry("general.alignment", U32, u32(4))]), "general.alignment", "power of two"),
    "alignment 48": (build([entry("general.alignment", U32, u32(48))]), "general.alignment", "power of two"),
    "alignment a string": (
        build([entry("general.alignment", STRING, text("32"))]), "general.alignment", "not a number"),
    "alignment an array": (
        build([entry("general.alignment", ARRAY, array(U8, 1, b"\x20"))]), "general.alignment", "not a number"),
    "alignment true": (build([entry("general.alignment", BOOL, b"\1")]), "general.alignment", "power of two"),
    "tensor names twice": (build([], [OK, tensor("a", [8], offset=32)], bytes(64)), "a", "twice"),
    "tensors overlap": (build([], [tensor("a", [16]), tensor("b", [8], offset=32)], bytes(64)), "b", "overlaps 'a'"),
    "tensors at one place": (build([], [tensor("a", [8]), tensor("b", [8])], bytes(64)), "b", "overlaps 'a'"),
    "tensor beyond the file": (build([], [tensor("a", [16])], bytes(32)), "a", "ends at byte"),
    "tensor without data": (build([], [tensor("a", [8])]), "a", "ends at byte"),
    "tensor's offset beyond the file": (build([], [tensor("a", [8], offset=64)], bytes(32)), "a", "ends at byte"),
    "tensor's offset 2^64-32": (build([], [tensor("a", [8], offset=2**64 - 32)], bytes(32)), "a", "ends at byte"),
    "tensor's offset odd": (build([], [tensor("a", [4], offset=16)], bytes(32)), "a", "multiple of the alignment"),
    "shape [0, 2^62]": (build([], [tensor("a", [0, 2**62])]), "a", "zero or over"),
    "shape [2^62, 0]": (build([], [tensor("a", [2**62, 0])]), "a", "zero or over"),
    "shape wraps round 2^64": (build([], [tensor("a", [2**32, 2**32])], bytes(32)), "a", "ends at byte"),
    "shape wraps round 2^128": (build([], [tensor("a", [2**40] * 4)], bytes(32)), "a", "ends at byte"),
    "five dimensions": (build([], [tensor("a", [1] * 5)], bytes(32)), "a", "5 dimensions"),
    "2^32-1 dimensions": (build([], [text("a") + u32(2**32 - 1)]), "a", "4,294,967,295 dimensions"),
    "row not of whole blocks": (build([], [tensor("a", [48, 2], Q8_0)], bytes(128)), "a", "Q8_0 blocks of 32"),
    "scalar of a block type": (build([], [tensor("a", [], Q8_0)], bytes(64)), "a", "Q8_0 blocks of 32"),
    "name ../../x": (build([], [tensor("../../x", [8])], bytes(32)), "../../x", "path"),
    "name C:\\x": (build([], [tensor("C:\\x", [8])], bytes(32)), "C:\\x", "path"),
    "name ..": (build([], [tensor("..", [8])], bytes(32)), "..", "path"),
    "name with NUL": (build([], [tensor("a\0b", [8])], bytes(32)), "'a\\x00b'", "plain text"),
    "name with terminal codes": (build([], [tensor("\x1b[2J", [8])], bytes(32)), "'\\x1b[2J'", "plain text"),
    "name not UTF-8": (build([], [tensor(b"\xff", [8])], bytes(32)), "header", "not UTF-8"),
    "unsupported tensor type": (build([], [tensor("a", [256], IQ2_XXS)], bytes(128)), "a", "IQ2_XXS is not supported"),
    "removed tensor type": (build([], [tensor("a", [256], 31)], bytes(128)), "a", "Q4_0_4_4 is not supported"),
    "unknown tensor type": (build([], [tensor("a", [8], 999)], bytes(32)), "a", "Tensor type 999 is not supported"),
    "wrong magic": (build(magic=b"GGML"), "header", "does not begin with GGUF"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "header", "git-lfs"),
    "web page": (b"<!DOCTYPE html>", "header", "web page"),
    "zip": (b"PK\3\4" + bytes(40), "header", "zip"),
    "GGML": (b"tjgg" + bytes(40), "header", "GGML"),
    "version 0": (build(version=0), "header", "version 0 "),
    "version 1": (build(version=1), "header", "version 1 "),
    "version 4": (build(version=4), "header", "version 4 "),
    "big endian": (big_endian(), "header", "Big-endian"),
    "empty": (b"", "header", "too short"),
    "magic alone": (b"GGUF", "header", "left in the file"),
    "counts cut": (build()[:-1], "header", "left in the file"),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile(write: Callable[[bytes], Path], case: str) -> None:
    content, field, message = HOSTILE[case]
    path = write(content)
    tracemalloc.start()
    try:
        with processor_time(CPU_SECONDS), pytest.raises(FileFormatError) as caught:
            read_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = caught.value
    assert error.file == str(path)
    assert error.field == field
    assert message in str(error)
    assert error.remedy
    assert str(error).isprintable()
    assert len(str(error)) < 1000
    assert peak < 200_000 + 20 * len(content)


def test_the_hostile_file_of_49_bytes_has_49() -> None:
    assert len(BYTES_49) == 49


def test_the_refusal_of_a_type_lists_those_supported(write: Callable[[bytes], Path]) -> None:
    with pytest.raises(FileFormatError, match=r"Use a file with F32, F16, .*Q6_K, IQ4_NL only\."):
        read_gguf(write(HOSTILE["unsupported tensor type"][0]))


def test_the_builder_builds_valid_files(write: Callable[[bytes], Path]) -> None:
    """Else the cases above would be refused for the wrong reason."""
    tensors = [OK, tensor("b", [32, 2], Q8_0, 32), tensor("scalar", [], offset=128)]
    model = read_gguf(write(build([entry("k", ARRAY, nested(4)), entry("z", U64, u64(1))], tensors, bytes(132))))
    assert model.metadata["z"] == 1
    assert [(it.shape, it.nbytes) for it in model.tensors.values()] == [((8,), 32), ((2, 32), 68), ((), 4)]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="does not exist"):
        read_gguf(tmp_path / "none.gguf")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="folder"):
        read_gguf(tmp_path)


def test_path_with_nul() -> None:
    with pytest.raises(FileFormatError):
        read_gguf("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_without_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(FileFormatError, match="ordinary"):
        read_gguf(tmp_path / "pipe.gguf")


@pytest.mark.parametrize(
    "value",
    [
        entry("a", STRING, text("x" * 2000)),
        entry("a", ARRAY, array(STRING, 3, *[text("x" * 500)] * 3)),
        entry("a", ARRAY, array(U8, 2000, b"x" * 2000)),
        entry("a", ARRAY, array(STRING, 200, *[text("")] * 200)),
    ],
)
def test_more_metadata_than_our_limit(
    write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch, value: bytes
) -> None:
    path = write(build([value], [OK], bytes(32)))
    assert read_gguf(path).tensors
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 1024)
    with pytest.raises(FileFormatError, match="beyond 1,024 bytes, our limit") as caught:
        read_gguf(path)
    assert caught.value.field == "a"


def test_a_system_that_refuses_copy_on_write(write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    real = reader.mmap.mmap

    def refuse(handle: int, length: int, *, access: int) -> object:
        if access == reader.mmap.ACCESS_COPY:
            raise OSError(12, "Cannot allocate memory")
        return real(handle, length, access=access)

    monkeypatch.setattr(reader.mmap, "mmap", refuse)
    assert read_gguf(write(build([], [OK], b"\1" * 32))).raw("a").tolist() == [1] * 32


def valid_file() -> bytes:
    metadata = [
        entry("general.architecture", STRING, text("llama")),
        entry("general.alignment", U32, u32(32)),
        entry("llama.context_length", U64, u64(2048)),
        entry("tokenizer.ggml.tokens", ARRAY, array(STRING, 4, *map(text, ("<s>", "Ġa", "b", "é")))),
        entry("tokenizer.ggml.scores", ARRAY, array(6, 4, bytes(16))),
        entry("nested", ARRAY, array(ARRAY, 2, array(BOOL, 2, b"\0\1"), array(STRING, 1, text("x")))),
        entry("flag", BOOL, b"\1"),
    ]
    tensors = [tensor("token_embd.weight", [32, 4], Q8_0), tensor("output_norm.weight", [32], F32, 160)]
    return build(metadata, tensors, bytes(range(256)) + bytes(32))


def mutate(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(max(1, len(data)))
        match chance.randrange(6):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << chance.randrange(8)])
            case 2:
                del data[at:]
            case 3:  # a huge number in the place of another, or pushed in
                width = chance.choice((4, 8))
                value = chance.choice((2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1, 2**64 - 32)) % 2 ** (8 * width)
                data[at : at + chance.choice((0, width))] = value.to_bytes(width, "little")
            case 4:
                del data[at : at + chance.randrange(1, 64)]
            case 5:
                data[at:at] = data[at : at + chance.randrange(1, 64)]
    return bytes(data)


def use(model: GgufFile, size: int) -> None:
    """What a loader would rely on."""
    for name, it in model.tensors.items():
        assert 0 < it.start <= it.start + it.nbytes <= size
        assert len(model.raw(name)) == it.nbytes
        elements, block = reader.BLOCKS[it.type]
        count = 1
        for length in it.shape:
            count *= length
        assert it.nbytes == count // elements * block


def test_mutations(write: Callable[[bytes], Path]) -> None:
    original = valid_file()
    use(read_gguf(write(original)), len(original))
    chance = random.Random(20_240_611)
    read = 0
    refused: set[str] = set()
    refusal: FileFormatError | None
    for number in range(3000):
        content = mutate(original, chance)
        path = write(content)
        with processor_time(CPU_SECONDS):
            try:
                model = read_gguf(path)
            except FileFormatError as error:
                refusal = error
            else:
                refusal = None
                use(model, len(content))
                read += 1
        if refusal:
            assert refusal.file == str(path), number
            assert refusal.field, number
            assert refusal.remedy, number
            assert str(refusal).isprintable(), number
            refused.add(refusal.field)
    # the mutations reach every part of the file
    assert read > 100
    assert {"header", "general.alignment", "tokenizer.ggml.tokens", "nested", "output_norm.weight"} <= refused


def test_every_truncation(write: Callable[[bytes], Path]) -> None:
    original = valid_file()
    needed = len(original) - 288 + 160 + 128  # the data up to the end of its last tensor
    for length in range(needed):
        with pytest.raises(FileFormatError):
            read_gguf(write(original[:length]))
    read_gguf(write(original[:needed]))


def test_a_large_vocabulary_is_quick(write: Callable[[bytes], Path]) -> None:
    """128,256 tokens and 280,147 merges, as Llama 3 has; a model is to load within 1.5 s, this part within 0.3 s."""
    tokens = [text(f"Ġ{i:x}é") for i in range(128_256)]
    merges = [text(f"Ġ{i:x} {i:x}") for i in range(280_147)]
    kinds = array(5, len(tokens), bytes(4 * len(tokens)))
    path = write(
        build(
            [
                entry("tokens", ARRAY, array(STRING, len(tokens), *tokens)),
                entry("merges", ARRAY, array(STRING, len(merges), *merges)),
                entry("kinds", ARRAY, kinds),
            ]
        )
    )
    with processor_time(6.0):  # twenty times the aim
        model = read_gguf(path)
    assert len(model.metadata["merges"]) == 280_147
