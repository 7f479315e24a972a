"""Coverage in the threads of Qt's pool. Python does not start them, so its trace function does not reach them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from loradesk_app import background


@pytest.fixture(scope="session", autouse=True)
def traced_pool() -> Iterator[None]:
    """Background jobs run with the trace function that Python's own threads get, if there is one."""
    trace = threading.gettrace()
    run = background._Job.run

    def traced(job: background._Job) -> None:
        sys.settrace(trace)
        run(job)

    with pytest.MonkeyPatch.context() as patch:
        if trace is not None:
            patch.setattr(background._Job, "run", traced)
        yield
