"""The installation that `make run` and `make test` make, with a stub in pip's place: nothing is downloaded."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import environment
import native
import pytest

ROOT = Path(__file__).resolve().parents[2]
# As pip 23.2 prints it.
PIP_OUTPUT = """\
Looking in links: wheels
Obtaining file:///project
  Installing build dependencies: started
  Installing build dependencies: finished with status 'done'
Collecting torch<2.14,>=2.11 (from loradesk==0.1.0)
  Obtaining dependency information for torch<2.14,>=2.11
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (30 kB)
  Preparing editable metadata (pyproject.toml): started
  Preparing editable metadata (pyproject.toml): finished with status 'done'
Requirement already satisfied: pip in .venv (23.2)
Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)
Using cached numpy-2.4.1-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)
Processing {wheel}
Building wheels for collected packages: loradesk
Installing collected packages: numpy, torch, loradesk
Successfully installed loradesk-0.1.0 numpy-2.4.1 torch-2.13.0
"""


def stub_python(folder: Path, script: str) -> Path:
    """An interpreter in the environment's place, which runs this shell script."""
    python = environment.python_of(folder)
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    python.chmod(0o755)
    return python


def test_a_line_for_each_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel = tmp_path / "regex-2026.1-py3-none-any.whl"
    wheel.write_bytes(b"x" * 3_000_000)
    output = tmp_path / "output.txt"
    output.write_text(PIP_OUTPUT.format(wheel=wheel), "utf-8")
    environment.run_pip(stub_python(tmp_path / "venv", f"cat '{output}'"), ["install"])
    assert capsys.readouterr().out.splitlines() == [
        "  Obtaining file:///project",
        "  Installing build dependencies: started",
        "  Compiling the kernels for the CPU; this takes a minute or two",
        "  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (191.8 MB)",
        "  Using cached numpy-2.4.1-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)",
        "  Local file regex-2026.1-py3-none-any.whl (3 MB)",
        "  Installing 3 packages; this takes a minute or two",
    ]


def test_silence_is_reported() -> None:
    assert list(environment.progress(iter([None, "Collecting numpy", None]))) == ["... still working"] * 2


def test_pip_that_fails_fails_the_installation(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stub_python(tmp_path / "venv", "echo 'ERROR: no space left' >&2; exit 7")
    assert environment.main(["test", str(tmp_path / "venv")]) == 1
    captured = capfd.readouterr()
    assert "ERROR: no space left" in captured.err
    assert "code 7" in captured.err
    assert "`make test` continues" in captured.err


def test_running_needs_no_test_tools() -> None:
    assert environment.what_to_install("run") == ["--editable", str(ROOT)]
    for_tests = environment.what_to_install("test")
    assert any(requirement.startswith("pytest>") for requirement in for_tests)
    assert any(requirement.startswith("torch>") for requirement in for_tests), "pip must see both sets at once"


def test_half_an_environment_is_completed(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    environment.make_environment(folder)
    subprocess.run([str(environment.python_of(folder)), "-m", "pip", "--version"], check=True, capture_output=True)


def test_sizes_of_packages(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    (site / "torch" / "lib").mkdir(parents=True)
    (site / "torch" / "lib" / "libtorch.so").write_bytes(b"x" * 300)
    (site / "six.py").write_bytes(b"y" * 20)
    assert environment.packages(tmp_path) == {"torch": 300, "six.py": 20}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that make looks at, and an installation that only writes down what was asked for."""
    folder = tmp_path / "checkout"
    (folder / "packaging").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "packaging/debian-packages.txt", "packaging/native.py"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "packaging" / "environment.py").write_text(
        "import os, pathlib, sys\n"
        "if os.environ.get('FAILS'): sys.exit(1)\n"
        "pathlib.Path(sys.argv[2], 'bin').mkdir(parents=True, exist_ok=True)\n"
        "for name in ('loradesk', 'ruff'):\n"
        "    program = pathlib.Path(sys.argv[2], 'bin', name)\n"
        "    program.write_text('#!/bin/sh\\n'); program.chmod(0o755)\n"
        "open('installed.txt', 'a').write(sys.argv[1] + '\\n')\n",
        "utf-8",
    )
    return folder


def make(checkout: Path, target: str, **environ: str) -> tuple[int, list[str]]:
    """Run a target; returns the exit code and what has been installed since the last call."""
    log = checkout / "installed.txt"
    log.unlink(missing_ok=True)
    command = ["make", f"PYTHON={sys.executable}", target]
    # The options of the make that runs these tests are not meant for this one.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=checkout, env={**outer, **environ}, capture_output=True, check=False)
    return done.returncode, log.read_text("utf-8").split() if log.exists() else []


STAMPS = (".venv/.installed", ".venv/.installed-test")


def test_each_target_installs_what_it_needs_once(checkout: Path) -> None:
    assert make(checkout, "run") == (0, ["run"])
    assert make(checkout, "run") == (0, [])
    assert make(checkout, STAMPS[1]) == (0, ["test"])
    assert make(checkout, "run") == (0, [])
    assert make(checkout, STAMPS[1]) == (0, [])


def test_tests_bring_what_running_needs_first(checkout: Path) -> None:
    assert make(checkout, STAMPS[1]) == (0, ["run", "test"])


def test_a_changed_project_file_installs_again(checkout: Path) -> None:
    make(checkout, STAMPS[1])
    for stamp in STAMPS:
        os.utime(checkout / stamp, (1, 1))
    assert make(checkout, STAMPS[1]) == (0, ["run", "test"])


def test_a_failed_installation_is_not_taken_for_a_finished_one(checkout: Path) -> None:
    code, installed = make(checkout, "run", FAILS="1")
    assert code
    assert not installed
    assert make(checkout, "run") == (0, ["run"])


def test_system_packages_are_named_when_missing(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in {
        "dpkg-query": '[ "$3" = gcc ] && echo "install ok installed"',
        "id": "echo 1000",
        "sudo": "exit 1",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        (tools / name).chmod(0o755)
    script = str(ROOT / "packaging" / "system-packages.sh")
    environ = {"PATH": f"{tools}:/usr/bin:/bin"}

    def run(*names: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", script, *names], env=environ, capture_output=True, text=True, check=True)

    assert run("gcc").stdout == "Nothing is missing.\n"
    assert "sudo apt-get install python3-venv" in run("gcc", "python3-venv").stderr
    assert "libegl1 libgl1" in run().stderr, "by default the list of debian-packages.txt"


def test_kernels_are_compiled_once_for_the_same_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "native"
    shutil.copytree(native.SOURCES, sources, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    calls = tmp_path / "calls.txt"
    compiler = tmp_path / "cc"
    # Writes its arguments, with the digest among them, where the library belongs.
    compiler.write_text(
        f'#!/bin/sh\necho call >>\'{calls}\'\ntext=$*; while [ "$1" != -o ]; do shift; done; echo "$text" >"$2"\n',
        "utf-8",
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setenv("CC", str(compiler))

    def compiled(again: bool) -> int:
        calls.write_text("", "utf-8")
        assert native.compile_kernels(again=again)
        return len(calls.read_text("utf-8").split())

    kinds = compiled(again=False)
    assert kinds >= 1
    assert compiled(again=False) == 0
    assert compiled(again=True) == kinds
    (sources / "pool.c").write_text("int changed;\n", "utf-8")
    assert compiled(again=False) == kinds
    os.utime(next((sources / "lib").iterdir()), (1, 1))
    assert compiled(again=False) == 1, "older than the flags"
