"""Content hashes against hashlib over whole files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from loradesk_engine.errors import Cancelled, FileFormatError
from loradesk_engine.formats import content_hash as hashes
from loradesk_engine.formats.content_hash import content_hash, file_hash


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, size in (("model-1.safetensors", 3 * 2**20 + 5), ("model-2.safetensors", 17), ("config.json", 0)):
        (tmp_path / name).write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    return tmp_path


def test_one_file_has_its_own_sha256(folder):
    for file in folder.iterdir():
        assert content_hash([file]) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_several_files_are_hashed_as_sha256sum_lists_them(folder):
    names = sorted(file.name for file in folder.iterdir())
    listing = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    assert content_hash(reversed(sorted(folder.iterdir()))) == hashlib.sha256(listing.encode()).hexdigest()


def test_a_changed_file_is_hashed_anew_and_an_unchanged_one_is_not_read(folder, monkeypatch):
    file = folder / "model-2.safetensors"
    before = file_hash(file)
    monkeypatch.setattr(hashes, "CHUNK", None)  # a read would raise
    assert file_hash(file) == before
    monkeypatch.undo()
    file.write_bytes(b"other content")
    assert file_hash(file) == hashlib.sha256(b"other content").hexdigest()


def test_the_hub_caches_own_hash_is_taken(tmp_path):
    blob = tmp_path / "blobs" / ("a" * 64)
    blob.parent.mkdir()
    blob.write_bytes(b"content")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert file_hash(link) == "a" * 64


def test_a_missing_file_is_named_and_hashing_can_be_cancelled(folder):
    with pytest.raises(FileFormatError) as caught:
        content_hash([folder / "nothing.gguf"])
    assert "nothing.gguf" in str(caught.value.file)

    def stop() -> None:
        raise Cancelled

    (folder / "large").write_bytes(b"y" * 5)
    with pytest.raises(Cancelled):
        content_hash([folder / "large"], stop)
