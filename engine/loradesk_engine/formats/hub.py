"""Models and adapters by hub id: downloaded file by file, with progress and cancel, into huggingface_hub's own
cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loradesk_engine.errors import HubError

Progress = Callable[[str, float | None], None]
"""Called with a sentence for the user and the fraction that is done (None: unknown); raises `Cancelled` to stop."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
MODEL_PATTERNS = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model")


def silent(stage: str, fraction: float | None) -> None:
    """A `Progress` that nobody watches."""


def resolve_source(
    source: str,
    *,
    near: Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    progress: Progress = silent,
) -> Path:
    """The local path of a model or adapter: a path that exists, or a hub id that is downloaded when it is not in the
    cache.

    Args:
        near: folder that relative paths are looked for in first (that of the file which names the source).

    Raises:
        HubError: no such path, and no such repository, no permission or no network.
    """
    for candidate in ([near / source] if near is not None else []) + [Path(source).expanduser()]:
        if candidate.exists():
            return candidate
    looks_local = source.startswith((".", "/", "~")) or "\\" in source or Path(source).is_absolute()
    if looks_local or not HUB_ID.fullmatch(source):
        raise HubError(
            "Neither a file or folder that exists nor the id of a hub repository.",
            file=source,
            remedy="Check the path.",
        )
    return download(source, revision=revision, token=token, progress=progress)


def download(repo: str, *, revision: str | None, token: str | None, progress: Progress) -> Path:
    """The folder of a repository's files that a load needs. Files in the cache are not fetched again.

    Raises:
        HubError: names the repository and what to do. Cancelled: from `progress`.
    """
    # huggingface_hub 2 speaks through httpx2, its versions before through httpx
    http = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    progress(f"Looking up {repo}", None)
    try:
        try:
            info = HfApi().model_info(repo, revision=revision, token=token, files_metadata=True)
        except (http.TransportError, OfflineModeIsEnabled) as problem:
            return _from_cache(repo, revision, problem)
        files = [item for item in info.siblings or [] if _wanted(item.rfilename)]
        total = sum(item.size or 0 for item in files) or 1
        done = 0
        folder: Path | None = None
        for item in files:
            name = item.rfilename
            progress(f"Downloading {name}", min(1.0, done / total))

            class _Bar(_ProgressBar):
                report = staticmethod(
                    lambda count, name=name, before=done: progress(
                        f"Downloading {name}", min(1.0, (before + count) / total)
                    )
                )

            path = Path(hf_hub_download(repo, name, revision=revision, token=token, tqdm_class=_Bar))
            parent = path.parents[len(Path(name).parts) - 1]
            if folder is not None and parent != folder:
                raise HubError("The repository changed while it was downloaded.", file=repo, remedy="Load it again.")
            folder = parent
            done += item.size or 0
        if folder is None:
            raise HubError("The repository holds no safetensors or JSON files.", file=repo)
        return folder
    except GatedRepoError:
        raise HubError(
            "The repository is gated.",
            file=repo,
            remedy="Accept its terms on its page, then give an access token (or set HF_TOKEN).",
        ) from None
    except RevisionNotFoundError:
        raise HubError("The repository has no such revision.", file=repo, field=revision) from None
    except RepositoryNotFoundError:
        raise HubError(
            "No such repository, or it is private.", file=repo, remedy="Check the id, or give an access token."
        ) from None
    except LocalEntryNotFoundError:
        raise HubError(
            "The download failed, and the file is not in the cache.", file=repo, remedy="Try again."
        ) from None
    except EntryNotFoundError as problem:
        raise HubError(f"A file is missing: {problem}.", file=repo) from None
    except (HfHubHTTPError, http.HTTPError) as problem:
        raise HubError(f"The hub cannot be reached: {problem}", file=repo, remedy="Check the network.") from None
    except OSError as problem:
        raise HubError(f"The download cannot be stored: {problem}.", file=repo) from problem


def _from_cache(repo: str, revision: str | None, problem: Exception) -> Path:
    """What an earlier download left, when there is no network."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", "adapter_config.json", "xlora_config.json"):
        path = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    raise HubError(
        f"The hub cannot be reached, and the repository is not in the cache: {problem}.",
        file=repo,
        remedy="Check the network, or choose a local folder.",
    )


def _wanted(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in MODEL_PATTERNS)


class _ProgressBar:
    """What huggingface_hub needs of a tqdm bar; `update` may raise, which stops the download."""

    report: Callable[[int], None]

    def __init__(self, *args: Any, **options: Any) -> None:
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
