"""A model or adapter on the hub, not downloaded: its small files, of its weights the headers, of all files the size."""

from __future__ import annotations

import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loradesk_engine.errors import FileFormatError, HubError
from loradesk_engine.files import MAX_JSON_BYTES, parse_json
from loradesk_engine.formats import gguf, safetensors
from loradesk_engine.formats.gguf_rope import MAX_ROPE_BYTES, ROPE_TENSORS
from loradesk_engine.formats.hub import FILES, FIRST_LOAD, NOT_DOWNLOADED, HubSource, chosen
from loradesk_engine.formats.hub_errors import hub_errors, network_errors
from loradesk_engine.formats.hub_ranges import REQUEST_SECONDS, RangeReader
from loradesk_engine.formats.sparse import write_sparse

Pieces = tuple[tuple[int, bytes], ...]
"""Parts of a file: (first byte, data)."""

SAFETENSORS_FIRST = 2**16  # bytes of the first request, which most headers fit into
GGUF_FIRST = 2**19  # doubled until the header is whole
THREADS = 8  # requests side by side: a model may have 200 shards
MAX_FILES = 1000
MAX_SIZE = 2**60
SUFFIXES = (".json", ".safetensors", ".gguf")
STRANGE = frozenset('\\:*?"<>|')  # in a file's name on Windows
UNREAD = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "added_tokens.json", "special_tokens_map.json",
    "trainer_state.json",
)  # fmt: skip
"""JSON files, often large, that say nothing of memory."""


@dataclass(frozen=True)
class OutlinedFile:
    """A file of a repository.

    Attributes:
        name: its path in the repository.
        size: bytes.
        pieces: what is known of it.
    """

    name: str
    size: int
    pieces: Pieces


@dataclass(frozen=True)
class Outline:
    """What a load would download, as far as it tells how large the load will be.

    Attributes:
        source: with the GGUF file's name, also where the hub id left it out.
        files: those that a load needs, without tokenizers.
    """

    source: HubSource
    files: tuple[OutlinedFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is known."""
        return sum(len(data) for file in self.files for _, data in file.pieces)

    def write(self, folder: Path) -> Path:
        """Write files of the right names and sizes that hold what is known, and zeros; the path to read.

        Raises:
            HubError: they cannot be written.
        """
        try:
            for file in self.files:
                path = folder / file.name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_sparse(path, file.size, file.pieces)
        except (OSError, ValueError) as problem:  # ValueError: a name or size beyond what the system knows
            reason = (problem.strerror if isinstance(problem, OSError) else None) or problem
            raise HubError(
                f"The headers cannot be laid down in the temporary folder: {reason}.",
                file=self.source.repo,
                remedy="It is known once it is downloaded.",
            ) from problem
        return folder / self.source.inside


def fetch_outline(source: HubSource, *, revision: str | None, token: str | None) -> Outline:
    """Ask the hub for the small files and headers. Nothing is written, neither to the hub's cache nor elsewhere.

    Raises:
        HubError: no network, no such repository, no permission, nothing to load there, or the hub breaks the rules.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hub_errors(source.repo, revision):
        try:
            info = HfApi().model_info(
                source.repo, revision=revision, token=token, files_metadata=True, timeout=REQUEST_SECONDS
            )
        except OfflineModeIsEnabled:
            raise HubError(NOT_DOWNLOADED, file=source.repo, field=source.inside or None, remedy=FIRST_LOAD) from None
        except network_errors() as problem:
            raise HubError(
                f"It has not been downloaded yet, and the hub cannot be reached: {problem}.",
                file=source.repo,
                field=source.inside or None,
                remedy="Check the network.",
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise HubError(f"The hub's answer makes no sense: {problem}.", file=source.repo) from problem
        siblings = [item for item in info.siblings or [] if isinstance(item.rfilename, str)]
        source = chosen(source, [item.rfilename for item in siblings])
        sizes = _sizes(siblings, source)
        reader = RangeReader(source.repo, info.sha or revision or "main", token)
        files = _fetch_near(reader, sizes, source)
    if not files:
        raise HubError(
            "The repository holds no safetensors or JSON files there.", file=source.repo, field=source.inside or None
        )
    return Outline(source, tuple(files))


def _fetch_near(reader: RangeReader, sizes: Mapping[str, int], source: HubSource) -> list[OutlinedFile]:
    """What is known of the files that the source names, or that lie in its folder."""
    if source.files:
        return _fetch(reader, sizes)
    near = PurePosixPath(source.inside)
    if near.suffix in FILES:
        near = near.parent
    files = _fetch(reader, {name: size for name, size in sizes.items() if PurePosixPath(name).parent == near})
    if _is_xlora(files):  # its adapters lie in folders below; other folders are other models, or older states
        files += _fetch(reader, {name: size for name, size in sizes.items() if PurePosixPath(name).parent != near})
    return files


def _sizes(siblings: list[Any], source: HubSource) -> dict[str, int]:
    """File name -> bytes, of what tells how large a load will be."""
    sizes = {}
    for item in siblings:
        name, size = item.rfilename, item.size
        path = PurePosixPath(name)
        if not source.wants(name) or path.suffix not in SUFFIXES or path.name in UNREAD or not _stays_inside(name):
            continue
        if type(size) is not int or not 0 <= size < MAX_SIZE:
            raise HubError("The hub does not tell the file's size.", file=source.repo, field=name)
        sizes[name] = size
    return sizes


def _stays_inside(name: str) -> bool:
    """Whether a name that the hub gave is one of a file below a folder, on every system."""
    parts = name.split("/")
    return not any(part in ("", ".", "..") or not part.isprintable() or set(part) & STRANGE for part in parts)


def _fetch(reader: RangeReader, sizes: Mapping[str, int]) -> list[OutlinedFile]:
    """What is known of the files."""
    if len(sizes) > MAX_FILES:
        raise HubError(f"There are {len(sizes):,} files, our limit is {MAX_FILES:,}.", file=reader.repo)
    waiting = iter(sizes.items())
    lock = threading.Lock()
    known: dict[str, Pieces] = {}
    problems: list[Exception] = []

    def work() -> None:
        while not problems:
            with lock:
                name, size = next(waiting, ("", 0))
            if not name:
                return
            try:
                known[name] = _pieces(reader, name, size)
            except Exception as problem:  # noqa: BLE001 - raised below, in the thread that waits
                problems.append(problem)

    # daemons: unlike a pool's threads they do not hold up the end of the program while the hub is silent
    threads = [threading.Thread(target=work, name="loradesk-headers", daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    return [OutlinedFile(name, size, known[name]) for name, size in sizes.items()]


def _pieces(reader: RangeReader, name: str, size: int) -> Pieces:
    if name.endswith(".safetensors"):
        return ((0, _safetensors_header(reader, name, size)),)
    if name.endswith(".gguf"):
        return _gguf_header(reader, name, size)
    # what is too large is refused by its size where it is read
    return () if size > MAX_JSON_BYTES else ((0, reader.read(name, 0, size)),)


def _safetensors_header(reader: RangeReader, name: str, size: int) -> bytes:
    """The header; only its beginning where it is wrong, which is told where it is read."""
    beginning = reader.read(name, 0, min(size, SAFETENSORS_FIRST))
    if len(beginning) < 8:
        return beginning
    end = 8 + struct.unpack("<Q", beginning[:8])[0]
    if end > min(size, 8 + safetensors.MAX_HEADER_BYTES):
        return beginning[:8]
    if end > len(beginning):
        beginning += reader.read(name, len(beginning), end - len(beginning))
    return beginning[:end]


def _gguf_header(reader: RangeReader, name: str, size: int) -> Pieces:
    """The header, and the numbers of the configuration that lie among the tensors."""
    beginning, found = _gguf_beginning(reader, name, size)
    if found is None:
        return ((0, beginning),)
    data_start = min((tensor.start for tensor in found.tensors.values()), default=len(beginning))
    ropes = [found.tensors[tensor] for tensor in ROPE_TENSORS if tensor in found.tensors]
    return (
        (0, beginning[:data_start]),
        *((it.start, reader.read(name, it.start, it.nbytes)) for it in ropes if it.nbytes <= MAX_ROPE_BYTES),
    )


def _gguf_beginning(reader: RangeReader, name: str, size: int) -> tuple[bytes, gguf.GgufFile | None]:
    """The file's first bytes, as many as its header needs, and what they say; None where they are wrong, which is told
    where they are read.
    """
    beginning = b""
    limit = min(size, gguf.MAX_HEADER_BYTES)
    while len(beginning) < limit:
        end = min(limit, max(GGUF_FIRST, 2 * len(beginning)))
        beginning += reader.read(name, len(beginning), end - len(beginning))
        try:
            found = gguf.read_gguf_beginning(name, beginning, size)
        except FileFormatError:
            break
        if found is not None:
            return beginning, found
    return beginning, None


def _is_xlora(files: list[OutlinedFile]) -> bool:
    """Whether the folder is an X-LoRA checkpoint's, in either format."""
    for file in files:
        name = PurePosixPath(file.name).name
        if name == "xlora_config.json":
            return True
        if name == "adapter_config.json" and file.pieces:
            with suppress(FileFormatError):  # told where it is read
                config = parse_json(file.pieces[0][1], file=file.name)
                return isinstance(config, dict) and config.get("peft_type") == "XLORA"
    return False
