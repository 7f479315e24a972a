"""What the ordering tools write, the checker accepts; and what it accepts, with the files at hand, loads."""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny

from loradesk_engine.cli.ordering import add_parser
from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import LoradeskError
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

NAMES = ("adapter_1", "adapter_10", "poet")
OTHERS = ("adapter_2", "poe", "Poet", "a/b", "..", "x y")
QUICK = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def loradesk(*words: object) -> int:
    """Run a command silently; the exit code."""
    parser = argparse.ArgumentParser("loradesk")
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["ordering", *map(str, words)])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = args.handler(args)
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a repository of three adapters, and one adapter's folder."""
    root = tmp_path_factory.mktemp("properties")
    tiny.make_llama(root / "base", num_hidden_layers=1)
    for number, name in enumerate(NAMES):
        targets = ["q_proj", "v_proj"] if number else ["q_proj", "down_proj"]
        tiny.make_lora(root / "base", root / "repository" / name, number, r=2, target_modules=targets)
    shutil.copytree(root / "repository" / "poet", root / "alone")
    return root


@pytest.fixture
def file(place: Path) -> Iterator[Path]:
    """Where an example writes; ids that are relative are looked for beside it."""
    yield place / "written.json"
    (place / "written.json").unlink(missing_ok=True)


names = st.sampled_from(NAMES + OTHERS)
ids = st.sampled_from(["repository", "alone", "./repository/poet", "people/away", "nowhere", "./nowhere", "base"])
pairs = st.lists(st.tuples(names, ids), max_size=4)
targets = st.sampled_from(["q_proj", "q_proj,v_proj", "all-linear", "embed_tokens,q_proj", "lm_head", "q_porj,v_proj"])


@QUICK
@given(
    order=st.lists(names, max_size=4),
    preloads=pairs,
    targets=targets,
    layers=st.booleans(),
    base=st.sampled_from([0, 1]),
)
def test_what_create_writes_passes_check(
    place: Path, file: Path, order: list[str], preloads: list[tuple[str, str]], targets: str, layers: bool, base: int
) -> None:
    file.unlink(missing_ok=True)
    flags = ["--targets", targets] if layers else ["--no-layers"]
    flags += [word for name, source in preloads for word in ("--preload", f"{name}={source}")]
    flags += ["--allow-missing"] if base else []
    code = loradesk("create", "--base", place / "base", *flags, "--names", ",".join(order) or " ", "-o", file)
    assert code in (0, 2)
    assert file.exists() == (code == 0)
    if code == 0:
        assert loradesk("check", file, "--base", place / "base") == 0
        assert loradesk("check", file) == 0


@QUICK
@given(before=pairs, added=pairs, replace=st.booleans(), remove=st.lists(names, max_size=2))
def test_what_preload_writes_passes_check(
    place: Path,
    file: Path,
    before: list[tuple[str, str]],
    added: list[tuple[str, str]],
    replace: bool,
    remove: list[str],
) -> None:
    layers = {"model.layers.0.self_attn.q_proj": 0}
    OrderingFile(str(place / "base"), ["poet"], layers).write(file)
    if before and loradesk("preload", file, *_flags("--add", before), "-i") != 0:
        return
    flags = _flags("--add", added) + [word for name in remove for word in ("--remove", name)]
    flags += ["--replace"] if replace else []
    if flags:
        text = file.read_bytes()
        code = loradesk("preload", file, *flags, "-i")
        assert code in (0, 2)
        assert code == 0 or file.read_bytes() == text
    assert loradesk("check", file) == 0


@QUICK
@given(
    order=st.none() | st.lists(names, max_size=3, unique=True),
    preloads=st.lists(
        st.tuples(names, st.sampled_from(["repository", "alone", "./repository/poet", "base"])), max_size=3
    ),
    layers=st.none()
    | st.dictionaries(
        st.sampled_from(["model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head", "model.layers.9.x"]),
        st.integers(0, 3),
        max_size=3,
    ),
    repository=st.booleans(),
)
def test_what_passes_check_loads(
    place: Path,
    file: Path,
    order: list[str] | None,
    preloads: list[tuple[str, str]],
    layers: dict[str, int] | None,
    repository: bool,
) -> None:
    """LoRA; the adapters that are neither preloaded nor in the repository are a warning of the check's, and refused."""
    OrderingFile(str(place / "base"), order, layers, [PreloadAdapter(*pair) for pair in preloads]).write(file)
    given_to_both = place / "repository" if repository and order else None
    flags = ["--adapters", given_to_both] if given_to_both else []
    passes = loradesk("check", file, "--mode", "lora", "--base", place / "base", *flags) == 0
    missing = given_to_both is None and bool(set(order or ()) - {name for name, _ in preloads})
    wanted = LoadSettings(mode="lora", ordering=str(file), repository=given_to_both and str(given_to_both))
    try:
        EngineCore.load(wanted)
    except LoradeskError:
        assert not passes or missing
    else:
        assert passes


def _flags(flag: str, pairs: list[tuple[str, str]]) -> list[str]:
    return [word for name, source in pairs for word in (flag, f"{name}={source}")]
