"""What all tests share: no network, no screen."""

from __future__ import annotations

import gc
import os
import tempfile

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LORADESK_LOG_FOLDER"] = tempfile.mkdtemp(prefix="loradesk-log-")  # commands of tests log there
os.environ.pop("LORADESK_LOG", None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what the modules made alone from now on: a load collects garbage, and going through all of transformers and
    PEFT each time would take most of a test.
    """
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-parity", action="store_true", help="write docs/parity.md from what the tests measure")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--write-parity") and exitstatus == pytest.ExitCode.OK:
        from support import parity

        parity.write(1e-4)
