"""Installs the project into a virtual environment and shows what it does: `python packaging/environment.py run FOLDER`.

`make run` and `make test` call it. `run` installs what the application needs; `test` adds the test tools. Both can be
interrupted: pip keeps finished downloads in its cache, and the next call continues from there.

It uses the standard library only, since it runs before anything is installed.
"""

from __future__ import annotations

import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
QUIET_S = 20  # after so long without a line from pip, say that it still works
# Measured in a fresh Debian 12 with torch 2.13 for the CPU; CONTRIBUTING.md and README.md state the same.
NEEDS = {
    "run": (
        "About 350 MB are downloaded and 1.4 GB stored. torch is the largest: 190 MB to download, 750 MB stored.\n"
        "The torch that PyPI has for Linux brings CUDA for NVIDIA GPUs, which adds several GB."
    ),
    "test": "About 65 MB are downloaded and 340 MB stored. The largest are transformers, mypy and openai.",
}
READY = {"run": "Loradesk is installed.", "test": "The test tools are installed."}


def main(arguments: list[str]) -> int:
    """Install what `run` or `test` needs; returns the exit code."""
    if len(arguments) != 2 or arguments[0] not in NEEDS:
        print("usage: python packaging/environment.py run|test FOLDER", file=sys.stderr)
        return 2
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        print(
            f"Loradesk needs Python 3.11 or newer; this is {found}, {sys.executable}.\n"
            "Name another one: make run PYTHON=python3.11",
            file=sys.stderr,
        )
        return 1
    purpose, folder = arguments[0], Path(arguments[1])
    try:
        install(purpose, folder)
    except subprocess.CalledProcessError as problem:
        return _stopped(purpose, f"The installation failed with code {problem.returncode}")
    except KeyboardInterrupt:
        return _stopped(purpose, "The installation was interrupted")
    return 0


def install(purpose: str, folder: Path) -> None:
    """Make the environment and install into it.

    Raises:
        CalledProcessError: a step failed; it has said why.
    """
    if purpose == "run":
        _say("Installing Loradesk in three steps: system packages, a virtual environment, Python packages.")
        _say("[1/3] System packages")
        subprocess.run(["sh", str(ROOT / "packaging" / "system-packages.sh")], check=True)
        _say(f"[2/3] Virtual environment: {folder}, Python {sys.version.split()[0]}")
        make_environment(folder)
        _say("[3/3] Python packages that running needs")
    else:
        _say("Adding the packages that tests and checks need")
    _say(NEEDS[purpose])
    _say(f"Free on this disk: {_size(shutil.disk_usage(folder).free)}.")
    before = packages(folder)
    run_pip(python_of(folder), ["install", *what_to_install(purpose)])
    _summarize(before, packages(folder))
    _say(READY[purpose])


def what_to_install(purpose: str) -> list[str]:
    """pip's arguments: the project itself, or its requirements with those of the tests.

    The requirements are named for `test`, because installing the project a second time would compile its kernels again.
    """
    if purpose == "run":
        return ["--editable", str(ROOT)]
    import tomllib  # Python 3.11

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def make_environment(folder: Path) -> None:
    """Make the virtual environment, or complete one whose making was interrupted."""
    pip = [str(python_of(folder)), "-m", "pip", "--version"]
    if python_of(folder).exists() and subprocess.run(pip, capture_output=True, check=False).returncode == 0:
        return
    if subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True, check=False).returncode:
        # Debian has the module in a package of its own.
        subprocess.run(["sh", str(ROOT / "packaging" / "system-packages.sh"), "python3-venv"], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def run_pip(python: Path, arguments: list[str]) -> None:
    """Run pip: with its own progress bars in a terminal, otherwise with one line for each package.

    Raises:
        CalledProcessError: pip failed; its message is on stderr.
    """
    command = [str(python), "-m", "pip", *arguments]
    if sys.stdout.isatty():
        subprocess.run(command, check=True)
        return
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as pip:
        assert pip.stdout is not None
        try:
            for line in progress(_lines_or_silence(pip.stdout)):
                _say(f"  {line}")
        except BaseException:
            pip.terminate()
            raise
    if pip.returncode:
        raise subprocess.CalledProcessError(pip.returncode, command)


def progress(lines: Iterator[str | None]) -> Iterator[str]:
    """What to show of pip's output: a line for each package that is fetched, and its last steps.

    Args:
        lines: pip's lines; None stands for a while of silence.
    """
    for line in lines:
        if line is None:
            yield "... still working"
            continue
        words = line.strip()
        if found := re.fullmatch(r"(?:Downloading|Using cached) (\S+) (\(.+\))", words):
            if not found[1].endswith(".metadata"):
                yield found[0]
        elif found := re.fullmatch(r"Processing (\S+\.whl)", words):
            yield f"Local file {Path(found[1]).name}{_size_of_file(found[1])}"
        elif found := re.fullmatch(r"Installing collected packages: (.+)", words):
            yield f"Installing {found[1].count(',') + 1} packages; this takes a minute or two"
        elif words.startswith("Preparing editable metadata") and words.endswith("started"):
            yield "Compiling the kernels for the CPU; this takes a minute or two"
        elif words.startswith(("Obtaining file:", "Installing build dependencies: started")):
            yield words


def packages(folder: Path) -> dict[str, int]:
    """The bytes that each top-level folder or file of the environment's packages takes on the disk."""
    sizes: dict[str, int] = {}
    for site in folder.glob("[Ll]ib*/**/site-packages"):
        for entry in site.iterdir():
            files = entry.rglob("*") if entry.is_dir() else iter([entry])
            sizes[entry.name] = sum(file.lstat().st_size for file in files if not file.is_dir())
    return sizes


def _lines_or_silence(stream: Iterator[str]) -> Iterator[str | None]:
    """The lines of a stream, and None whenever there was none for `QUIET_S`."""
    found: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stream:
            found.put(line)
        found.put("")  # the end; a line is never empty

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = found.get(timeout=QUIET_S)
        except queue.Empty:
            yield None
            continue
        if not line:
            return
        yield line


def _summarize(before: dict[str, int], after: dict[str, int]) -> None:
    new = {name: size for name, size in after.items() if name not in before}
    if not new:
        _say("All packages were there already.")
        return
    largest = sorted(new, key=lambda name: -new[name])[:5]
    count = sum(name.endswith(".dist-info") for name in new)
    _say(f"Installed {count} packages, {_size(sum(new.values()))}; {_size(sum(after.values()))} in all. The largest:")
    for name in largest:
        _say(f"  {_size(new[name]):>7}  {name}")


def _size(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _size_of_file(name: str) -> str:
    path = Path(name)
    return f" ({_size(path.stat().st_size)})" if path.is_file() else ""


def _stopped(purpose: str, what: str) -> int:
    print(f"{what}. `make {purpose}` continues: finished downloads are kept.", file=sys.stderr)
    return 1


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
