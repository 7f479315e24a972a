"""The application runs without the modules that the bundle leaves out: found here, not in an installation."""

import os
import subprocess
import sys
from pathlib import Path

from bundling import contents

CODE = """
import importlib.abc, pkgutil, sys

excluded = set(sys.argv[1].split(","))

class LeftOut(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if any(".".join(parts[:count]) in excluded for count in range(1, len(parts) + 1)):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, LeftOut())

import importlib
from PySide6.QtWidgets import QApplication
application = QApplication(["loradesk"])
for package in sys.argv[2].split(","):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
import pyqtgraph
pyqtgraph.PlotWidget()
from loradesk_engine import Engine
for mode in ("lora", "xlora"):
    with Engine.demo(mode) as engine:
        assert engine.chat("What is 17 + 25?", max_tokens=20).text
print("all there")
"""


def test_application_runs_without_what_is_left_out(tmp_path: Path) -> None:
    packages = ",".join(contents.APPLICATION_PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", CODE, ",".join(contents.EXCLUDED_MODULES), packages],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("all there\n")
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
