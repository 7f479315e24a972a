"""Models and adapters by hub id: downloaded file by file, with progress and cancel, into huggingface_hub's own
cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from loradesk_engine.errors import AdapterError, HubError
from loradesk_engine.formats.adapter_place import (
    CONFIG_NAME,
    AdapterName,
    AdapterPlace,
    find_place,
    folders_in,
    no_such_adapter,
    place_of_folder,
)
from loradesk_engine.formats.hub_errors import hub_errors, network_errors
from loradesk_engine.formats.hub_ranges import REQUEST_SECONDS

Progress = Callable[[str, float | None], None]
"""Called with a sentence for the user and the fraction that is done (None: unknown); raises `Cancelled` to stop."""

_PART = r"[A-Za-z0-9][\w.-]*"
HUB_ID = re.compile(rf"{_PART}(/{_PART})?")
INSIDE = re.compile(rf"({_PART}/{_PART})((?:/{_PART})+)/?")
MODEL_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")
BESIDE = ("*.json", "*.jinja", "tokenizer.model")  # of an adapter's folder, beside its weights
CONFIGS = ("config.json", CONFIG_NAME, "xlora_config.json")
FILES = (".gguf", ".safetensors", ".json")  # what a hub id that names one file ends with
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
LISTED = 20  # names in a message
NOT_DOWNLOADED, FIRST_LOAD = "It has not been downloaded yet.", "The first load downloads it."


@dataclass(frozen=True)
class HubSource:
    """What a hub id names.

    Attributes:
        repo: `owner/name`.
        inside: a folder or file of the repository, with slashes; empty for all of it.
        adapter: of a repository that may hold several adapters, the one that is meant.
        files: those that are wanted, once the repository's list is known; empty where `inside` says it.
    """

    repo: str
    inside: str = ""
    adapter: AdapterName | None = None
    files: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> HubSource | None:
        """`owner/name`, `owner/name/folder` or `owner/name/file.gguf`; None where it cannot be a hub id."""
        if HUB_ID.fullmatch(text):
            return cls(text)
        match = INSIDE.fullmatch(text)
        return None if match is None else cls(match[1], match[2].strip("/"))

    def wants(self, name: str) -> bool:
        """Whether a load of this needs the repository's file."""
        if self.files:
            return name in self.files
        if self.inside.endswith((".gguf", ".json")):
            return name == self.inside
        if self.inside.endswith(".safetensors"):  # one adapter of several that lie side by side, and their JSON files
            beside = PurePosixPath(name).parent == PurePosixPath(self.inside).parent
            return name == self.inside or (beside and name.endswith(".json"))
        inside = not self.inside or PurePosixPath(name).is_relative_to(self.inside)
        return inside and any(PurePosixPath(name).match(pattern) for pattern in MODEL_PATTERNS)


class Resolve(Protocol):
    """Finds the local path of a model or adapter; arguments and errors as those of `resolve_source`."""

    def __call__(
        self,
        source: str,
        *,
        near: Path | None = None,
        revision: str | None = None,
        token: str | None = None,
        progress: Progress = ...,
        adapter: AdapterName | None = None,
    ) -> Path: ...


def silent(stage: str, fraction: float | None) -> None:
    """A `Progress` that nobody watches."""


def resolve_source(
    source: str,
    *,
    near: Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = silent,
    adapter: AdapterName | None = None,
    fetch: bool = True,
) -> Path:
    """The local path of a model or adapter: a path that exists, or a hub id that is downloaded when it is not in the
    cache.

    Args:
        source: a path, or `owner/name`, `owner/name/folder`, `owner/name/file.gguf` on the hub.
        near: folder that relative paths are looked for in first (that of the file which names the source).
        adapter: which adapter is wanted: of a repository on the hub only its files are fetched. The path is that of
            the source, also where the adapter lies below it.
        fetch: whether to ask the hub; otherwise only its cache on this machine is looked at.

    Raises:
        HubError: no such path, and no such repository, no permission or no network. AdapterError: the repository has
            no such adapter, or several that it could be.
        Cancelled: from `progress`.
    """
    found = locate(source, near)
    if isinstance(found, Path):
        return found
    found = replace(found, adapter=adapter)
    if not fetch:
        return from_cache(found, revision, NOT_DOWNLOADED, FIRST_LOAD)
    return download(found, revision=revision, token=token, progress=progress)


def locate(source: str, near: Path | None = None) -> Path | HubSource:
    """The path that a text names, where it exists, else what it names on the hub; the hub is not asked.

    Args:
        near: folder that relative paths are looked for in first.

    Raises:
        HubError: it can be neither.
    """
    for candidate in ([near / source] if near is not None else []) + [Path(os.path.expanduser(source))]:
        with contextlib.suppress(OSError, ValueError):  # too long for a path, or a NUL in it
            if candidate.exists():
                return candidate
    looks_local = source.startswith((".", "/", "~")) or "\\" in source or Path(source).is_absolute()
    named = None if looks_local else HubSource.parse(source)
    if named is None or not _allowed(named.repo):
        raise HubError(
            "Neither a file or folder that exists nor the id of a hub repository.",
            file=source,
            remedy="Check the path.",
        )
    return named


def _allowed(repo: str) -> bool:
    """Whether the hub allows an id: its rules on length, dashes and dots."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError:
        return False
    return True


def download(source: HubSource, *, revision: str | None, token: str | None, progress: Progress) -> Path:
    """The folder of a repository's files that a load needs, or the GGUF file. Files in the cache are not fetched again.

    What the hub keeps in its large-file storage is checked against the SHA-256 that the hub tells for it.

    Raises:
        HubError: names the repository and what to do. Cancelled: from `progress`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    repo = source.repo
    unreachable: tuple[type[Exception], ...] = (*network_errors(), OfflineModeIsEnabled)
    progress(f"Looking up {repo}", None)
    with hub_errors(repo, revision):
        try:
            info = HfApi().model_info(
                repo, revision=revision, token=token, files_metadata=True, timeout=REQUEST_SECONDS
            )
        except unreachable as problem:
            return from_cache(source, revision, _unreachable(problem), "Check the network, or choose a local folder.")
        everything = info.siblings or []
        source = chosen(source, [item.rfilename for item in everything])
        files = [item for item in everything if source.wants(item.rfilename)]
        total = sum(item.size or 0 for item in files) or 1
        done = 0
        folder: Path | None = None
        for item in files:
            path = _fetch(repo, item, revision, info.sha, token, _share(progress, item.rfilename, done, total))
            parent = path.parents[len(PurePosixPath(item.rfilename).parts) - 1]
            if folder is not None and parent != folder:
                raise HubError("The repository changed while it was downloaded.", file=repo, remedy="Load it again.")
            folder = parent
            done += item.size or 0
        if folder is None:
            raise HubError("The repository holds no safetensors or JSON files there.", file=repo, field=source.inside)
        return folder / source.inside


def _unreachable(problem: Exception) -> str:
    """One sentence, however many the library has."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(problem, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub, and the repository is not in the cache."
    reason = str(problem).partition("\n")[0].rstrip(".")
    return f"The hub cannot be reached, and the repository is not in the cache: {reason}."


def _share(progress: Progress, name: str, before: int, total: int) -> Callable[[int], None]:
    """Tells the progress of one file as a part of all."""
    return lambda count: progress(f"Downloading {name}", min(1.0, (before + count) / total))


def chosen(source: HubSource, names: list[str]) -> HubSource:
    """The source with a GGUF file's name where the repository has nothing else to load, or with its adapter's files.

    Raises:
        HubError: there are several, or the file that was named is not there. AdapterError: so with the adapter.
    """
    gguf = [name for name in names if name.endswith(".gguf")]
    if source.inside.endswith(FILES):
        if source.inside in names:
            return source
        raise HubError(
            "The repository has no such file.", file=source.repo, field=source.inside, remedy=_offer(source.repo, gguf)
        )
    if source.adapter is not None:
        return replace(source, files=_adapter_files(source, source.adapter, names))
    inside = [name for name in gguf if not source.inside or PurePosixPath(name).is_relative_to(source.inside)]
    if not inside or any(source.wants(name) and name.endswith(".safetensors") for name in names):
        return source
    if len(inside) == 1:
        return replace(source, inside=inside[0])
    raise HubError(
        f"The repository holds {len(inside)} GGUF files, and none was named.",
        file=source.repo,
        remedy=_offer(source.repo, inside),
    )


def _adapter_files(source: HubSource, adapter: AdapterName, names: Iterable[str]) -> frozenset[str]:
    """Weights and configuration of an adapter, and what lies beside them in a folder of its own."""
    prefix = f"{source.inside}/" if source.inside else ""
    below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    where = f"{source.repo}/{source.inside}".rstrip("/")
    files: set[str] = set()
    for place in _adapter_places(adapter, below, where):
        files |= {place.config} if place.weights is None else {place.config, place.weights}
        config = PurePosixPath(place.config)
        if config.name == CONFIG_NAME:
            paths = [PurePosixPath(name) for name in below]
            files |= {str(path) for path in paths if path.parent == config.parent and any(map(path.match, BESIDE))}
    return frozenset(prefix + name for name in files)


def _adapter_places(adapter: AdapterName, files: list[str], where: str) -> list[AdapterPlace]:
    """The places of one adapter, or of all."""
    if not adapter.name:
        folders = list(folders_in(files).values()) or ([""] if CONFIG_NAME in files else [])
        return [place_of_folder(files, folder) for folder in folders]
    try:
        place = find_place(files, adapter)
    except AdapterError as problem:
        raise AdapterError(problem.problem, file=where, field=adapter.name, remedy=problem.remedy) from None
    if place is None:
        raise no_such_adapter(adapter.name, files, where)
    return [place]


def _offer(repo: str, names: list[str]) -> str:
    if not names:
        return "Check the name."
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"Choose one: {', '.join(f'{repo}/{name}' for name in names[:LISTED])}{more}."


def _fetch(
    repo: str, item: Any, revision: str | None, commit: str | None, token: str | None, report: Callable[[int], None]
) -> Path:
    """One file of a repository, from the cache or from the hub; a fresh one is checked.

    commit: what the revision is now; the cache may still have what it was.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    class _Bar(_ProgressBar):
        pass

    _Bar.report = staticmethod(report)
    report(0)
    name: str = item.rfilename
    known = isinstance(try_to_load_from_cache(repo, name, revision=commit or revision), str)
    path = Path(hf_hub_download(repo, name, revision=revision, token=token, tqdm_class=_Bar))
    if item.lfs is not None and not known:
        _verify(path, item.lfs.sha256, repo, name)
    return path


def _verify(path: Path, expected: str, repo: str, name: str) -> None:
    """Compare with the hub's SHA-256; what differs is removed. Nothing interrupts it: no unchecked file stays."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.resolve().unlink()  # the cache's blob that the path links to
        path.unlink(missing_ok=True)
        raise HubError(
            f"The file that arrived is not the hub's: its SHA-256 is {found}, the hub says {expected}. "
            "It has been removed.",
            file=repo,
            field=name,
            remedy="Load it again.",
        )


def from_cache(source: HubSource, revision: str | None, problem: str, remedy: str) -> Path:
    """What an earlier download left.

    Raises:
        HubError: nothing, with this problem and remedy.
    """
    cached = _Cached.find(source, revision)
    if cached is None:
        raise HubError(problem, file=source.repo, field=source.inside or None, remedy=remedy)
    return cached.path


def whole_in_cache(source: HubSource, revision: str | None) -> Path | None:
    """What an earlier download left, unless it is missing or was given up before all of the weights were there."""
    cached = _Cached.find(source, revision)
    return None if cached is None or not cached.is_whole else cached.path


@dataclass(frozen=True)
class _Cached:
    """What the cache on this machine has of a source.

    Attributes:
        path: the folder or file.
        names: the files that a load needs, as far as they are there: paths in the repository.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def find(cls, source: HubSource, revision: str | None) -> _Cached | None:
        snapshot = _snapshot(source.repo, revision)
        if snapshot is None:
            return None
        names = _files_below(snapshot)
        try:
            source = chosen(source, names)
        except (HubError, AdapterError):  # what is not here may still be on the hub
            return None
        wanted = tuple(name for name in names if source.wants(name))
        usable = any(PurePosixPath(name).name in CONFIGS or name.endswith((".safetensors", ".gguf")) for name in wanted)
        return cls(snapshot / source.inside, wanted) if usable else None

    @property
    def is_whole(self) -> bool:
        """Whether no weights are missing, as far as the files that are there show."""
        if self.path.is_file():
            return True
        weights = [PurePosixPath(name) for name in self.names if name.endswith(".safetensors")]
        shards = [(path.parent, match) for path in weights if (match := SHARD.fullmatch(path.name))]
        for parent, match in shards:
            if sum((parent, match[1]) == (other, its[1]) for other, its in shards) < int(match[2]):
                return False
        folders = {path.parent for path in weights}
        adapters = [PurePosixPath(name).parent for name in self.names if PurePosixPath(name).name == CONFIG_NAME]
        return bool(weights) and folders.issuperset(adapters)


def _snapshot(repo: str, revision: str | None) -> Path | None:
    """The cache's folder of a repository at a revision; None where there is none."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    revision = revision or "main"
    try:
        reference = root / "refs" / revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
        folder = root / "snapshots" / commit
        inside = folder.parent == root / "snapshots" and commit != ".."
        return folder if inside and folder.is_dir() else None
    except (OSError, ValueError):  # a revision that no file can be named after
        return None


def _files_below(folder: Path) -> list[str]:
    """Paths of all files, with slashes. The cache's files are links; those that lead nowhere are left out."""
    found = []
    for parent, _folders, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        found += [(inside / file).as_posix() for file in files if Path(parent, file).is_file()]
    return sorted(found)


class _ProgressBar:
    """What huggingface_hub needs of a tqdm bar; `update` may raise, which stops the download."""

    report: Callable[[int], None]

    def __init__(self, *_args: Any, **options: Any) -> None:
        self.n = int(options.get("initial") or 0)
        self.total = options.get("total")

    def update(self, count: float | None = 1) -> None:
        self.n += int(count or 0)
        type(self).report(self.n)

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        pass

    def refresh(self, *args: Any, **options: Any) -> None:
        pass

    def set_description(self, *args: Any, **options: Any) -> None:
        pass

    def set_postfix_str(self, *args: Any, **options: Any) -> None:
        pass
