"""What all tests share: no network, no screen."""

from __future__ import annotations

import gc
import os
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication
    from support.qt import PatientQtBot

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["LORADESK_LOG_FOLDER"] = tempfile.mkdtemp(prefix="loradesk-log-")  # commands of tests log there
os.environ.pop("LORADESK_LOG", None)

# Neither how long an example takes nor how long it takes to make decides a test. `make test-all` runs the thorough one.
settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=1000)
settings.load_profile("quick")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what the modules made alone from now on: a load collects garbage, and going through all of transformers and
    PEFT each time would take most of a test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def qtbot(qapp: QApplication, request: pytest.FixtureRequest) -> PatientQtBot:
    """Takes the place of pytest-qt's."""
    from support.qt import PatientQtBot

    return PatientQtBot(request)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-parity", action="store_true", help="write docs/parity.md from what the tests measure")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-parity") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--write-parity needs all tests in one process: leave out -n, or give -n 0")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if session.config.getoption("--write-parity") and exitstatus == pytest.ExitCode.OK:
        from support import parity

        parity.write()
