"""Parts of the files of a hub repository: what is asked for is read, and never more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loradesk_engine.errors import HubError

REQUEST_SECONDS = 10.0  # that the hub may be silent
ALL_SECONDS = 60.0  # for all parts of a repository together
MAX_BYTES = 256 * 2**20  # of all parts of a repository together; the headers of 200 shards take 10 MiB


class RangeReader:
    """Reads parts of a repository's files. Several threads may share it, and with it its limits on time and bytes.

    Args:
        commit: one commit for all files, so that they belong together.
    """

    def __init__(self, repo: str, commit: str, token: str | None) -> None:
        self.repo = repo
        self.commit = commit
        self._token = token
        self._end = time.monotonic() + ALL_SECONDS
        self._left = MAX_BYTES
        self._lock = threading.Lock()

    def read(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes of a file from byte `start` on. Where the hub sends more, the rest is not read.

        Raises:
            HubError: it takes too long or too much, the hub sends less, or it cannot begin in the middle of a file.
            Exception: those that `hub_errors` knows.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        if not count:
            return b""
        self._take(name, count)
        # compressed bytes could not be counted, nor begun in the middle
        wanted = {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
        headers = {**build_hf_headers(token=self._token), **wanted}
        data = bytearray()
        with _answer(hf_hub_url(self.repo, name, revision=self.commit), headers) as (begins, chunks):
            if begins != start:
                raise self._refuse(name, "The hub does not send parts of files.", "It is known once it is downloaded.")
            for chunk in chunks:
                data += chunk
                if len(data) >= count:
                    break
                self._hurry(name)
        if len(data) < count:
            raise self._refuse(name, f"The hub sent {len(data):,} of {count:,} bytes.", "Try again.")
        return bytes(data[:count])

    def _take(self, name: str, count: int) -> None:
        self._hurry(name)
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise self._refuse(name, f"The headers take more than {MAX_BYTES:,} bytes.", "Do not use these files.")

    def _hurry(self, name: str) -> None:
        if time.monotonic() > self._end:
            raise self._refuse(name, f"The hub took more than {ALL_SECONDS:.0f} s for the headers.", "Try again later.")

    def _refuse(self, name: str, problem: str, remedy: str) -> HubError:
        return HubError(problem, file=self.repo, field=name, remedy=remedy)


@contextmanager
def _answer(url: str, headers: dict[str, str]) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The hub's answer, read as far as the caller goes: its first byte's place in the file, and its bytes."""
    from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

    session: Any = get_session()
    with session.stream("GET", url, headers=headers, timeout=REQUEST_SECONDS, follow_redirects=True) as answer:
        hf_raise_for_status(answer)
        yield _begins(answer), answer.iter_bytes()


def _begins(answer: Any) -> int:
    """Where in the file an answer begins; -1 where it does not say so as it should."""
    if answer.status_code != 206:
        return 0
    begins = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(begins) if begins.isascii() and begins.isdigit() and len(begins) < 20 else -1
