"""Models and adapters on the hub, read by their headers alone before they are downloaded."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from loradesk_engine.errors import HubError, LoradeskError
from loradesk_engine.formats.adapter_place import AdapterName
from loradesk_engine.formats.hub import HubSource, Progress, Resolve, locate, silent, whole_in_cache
from loradesk_engine.formats.hub_outline import Outline, fetch_outline

KEEP_SECONDS = 600.0  # that an answer of the hub is remembered
KEEP_REFUSAL_SECONDS = 30.0
MAX_KEPT = 16  # answers
MAX_KEPT_BYTES = 64 * 2**20

_Key = tuple[HubSource, str | None, str | None]


class HubHeaders:
    """What the hub told of models and adapters, remembered for a while: who tries one setting after the other asks the
    hub once. For one thread at a time.
    """

    def __init__(self) -> None:
        self._kept: dict[_Key, tuple[float, Outline | HubError]] = {}  # with the time at which it ends; oldest first

    @contextmanager
    def on_disk(self) -> Iterator[Resolve]:
        """A function like `resolve_source`, but what would have to be downloaded is a folder or file of headers, with
        zeros for weights. They are gone when the context ends; errors inside it name the hub's file, not theirs.
        """
        with TemporaryDirectory(prefix="loradesk-", ignore_cleanup_errors=True) as folder:
            root = Path(folder)

            def resolve(
                source: str,
                *,
                near: Path | None = None,
                revision: str | None = None,
                token: str | None = None,
                progress: Progress = silent,
                adapter: AdapterName | None = None,
            ) -> Path:
                found = locate(source, near)
                if isinstance(found, Path):
                    return found
                found = replace(found, adapter=adapter)
                downloaded = whole_in_cache(found, revision)
                if downloaded is not None:
                    return downloaded
                progress(f"Asking the hub about {found.repo}", None)
                outline = self.outline(found, revision, token)
                number = sum(1 for _ in root.iterdir())  # one repository may be there in two revisions
                return outline.write(root / str(number) / found.repo)

            try:
                yield resolve
            except LoradeskError as problem:
                raise _named(problem, root) from None

    def outline(self, source: HubSource, revision: str | None, token: str | None) -> Outline:
        """The hub's answer, or the one that is remembered.

        Raises:
            HubError: as `fetch_outline`; remembered as well, for a shorter time.
        """
        key = (source, revision, token)
        now = time.monotonic()
        end, known = self._kept.get(key, (now, None))
        if known is None or now >= end:
            known = self._ask(key)
        if isinstance(known, HubError):
            raise copy.copy(known)  # not the one that is kept: a traceback would keep all it came through
        return known

    def _ask(self, key: _Key) -> Outline | HubError:
        source, revision, token = key
        answer: Outline | HubError
        try:
            answer = fetch_outline(source, revision=revision, token=token)
        except HubError as problem:
            answer = copy.copy(problem)
        self._kept.pop(key, None)
        seconds = KEEP_REFUSAL_SECONDS if isinstance(answer, HubError) else KEEP_SECONDS
        self._kept[key] = (time.monotonic() + seconds, answer)
        while len(self._kept) > MAX_KEPT or (len(self._kept) > 1 and self._nbytes() > MAX_KEPT_BYTES):
            del self._kept[next(iter(self._kept))]
        return answer

    def _nbytes(self) -> int:
        return sum(known.nbytes for _, known in self._kept.values() if isinstance(known, Outline))


def _named(problem: LoradeskError, root: Path) -> LoradeskError:
    """An error about a file below the root, named by its place on the hub: `owner/name/file`."""
    if problem.file is None or not Path(problem.file).is_relative_to(root):
        return problem
    file = Path(*Path(problem.file).relative_to(root).parts[1:]).as_posix()
    return type(problem)(problem.problem, file=file, field=problem.field, remedy=problem.remedy)
