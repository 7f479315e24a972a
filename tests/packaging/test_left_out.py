"""The application runs without the modules that the bundle leaves out: found here, not in an installation."""

import os
import subprocess
import sys
from pathlib import Path

from bundling import contents

CODE = """
import importlib.util, pkgutil, sys

# None there: neither found nor imported, nor what is below it. pyqtgraph takes a name that is there for the binding of
# Qt in use, so what is not installed is not hidden.
hidden = [name for name in sys.argv[1].split(",") if "." in name or importlib.util.find_spec(name)]
sys.modules.update(dict.fromkeys(hidden))
from PySide6.QtWidgets import QApplication
application = QApplication(["loradesk"])
for package in sys.argv[2].split(","):
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__") and not module.name.startswith(sys.argv[3]):
            importlib.import_module(module.name)
import pyqtgraph
pyqtgraph.PlotWidget()
from loradesk_engine import Engine
for mode in ("lora", "xlora"):
    with Engine.demo(mode) as engine:
        assert engine.chat("What is 17 + 25?", max_tokens=20).text
from loradesk_engine.demo import demo_settings
with Engine.load(demo_settings("none").base, quantize="nf4") as engine:
    assert engine.chat("What is 17 + 25?", max_tokens=2).text
print("all there")
"""


def test_application_runs_without_what_is_left_out(tmp_path: Path) -> None:
    packages = ",".join(contents.APPLICATION_PACKAGES)
    done = subprocess.run(
        [sys.executable, "-c", CODE, ",".join(contents.EXCLUDED_MODULES), packages, contents.TRITON_MODULES],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_CONFIG_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("all there\n")
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
