"""`loradesk ordering` as scripts and as people use it, on files that PEFT and transformers wrote."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from support import tiny
from support.hub_server import FakeHub, point_at, serve

from loradesk_engine.cli.ordering import add_parser
from loradesk_engine.ordering.modules import linear_modules, match_targets, number_layers
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter
from loradesk_resources import resource_path

PROGRAM = (
    "import sys\n"
    "from loradesk_engine.cli import main\n"
    "code = main()\n"
    "assert 'torch' not in sys.modules, 'torch was imported'\n"
    "sys.exit(code)\n"
)


def loradesk(*words: object) -> int:
    """Run a command in this process; the exit code."""
    parser = argparse.ArgumentParser("loradesk")
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["ordering", *map(str, words)])
    code = args.handler(args)
    assert isinstance(code, int)
    return code


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a config.json and nothing else."""
    folder = tmp_path / "tiny-base"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file for the base, q_proj and v_proj, adapters one and two."""
    paths = match_targets(linear_modules({"model_type": "llama", "num_hidden_layers": 2}), ["q_proj", "v_proj"])
    path = tmp_path / "o.json"
    OrderingFile("org/tiny-base", ["one", "two"], number_layers(paths)).write(path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.json"


# create


def test_create_from_a_base(base: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loradesk("create", "--base", base, "--targets", "v_proj, q_proj,", "--names", "b,a", "-o", out) == 0
    ordering = OrderingFile.read(out)
    assert ordering.base_model_id == str(base)
    assert ordering.order == ("b", "a")
    assert list(ordering.layers or ()) == [f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qv"]
    assert capsys.readouterr().out == f"Wrote {out}: 4 layers, 2 adapters in order.\n"


def test_create_variants(base: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--force", "-o", out)
    assert loradesk("create", "--base", base / "config.json", "--targets", "All-Linear", *common) == 0
    assert len(OrderingFile.read(out).layers or ()) == 14
    assert OrderingFile.read(out).order is None
    assert loradesk("create", "--base", base, "--target-pattern", r".*\.1\..*(up|down)_proj", *common) == 0
    assert len(OrderingFile.read(out).layers or ()) == 2
    words = ("--no-layers", "--names", "a", "--preload", "p=org/p", "--preload", "q=./q")
    assert loradesk("create", "--base", "org/b", *words, *common) == 0
    preloads = [PreloadAdapter("p", "org/p"), PreloadAdapter("q", "./q")]
    assert OrderingFile.read(out) == OrderingFile("org/b", ["a"], None, preloads)
    assert loradesk("create", "--base", base, "--base-id", "org/x", "--targets", "q_proj", *common) == 0
    assert OrderingFile.read(out).base_model_id == "org/x"
    capsys.readouterr()
    assert loradesk("create", "--base", base, "--targets", "q_proj", "-o", "-") == 0
    assert OrderingFile.parse(capsys.readouterr().out).base_model_id == str(base)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, two adapters of it with different targets, and an X-LoRA over them in both formats."""
    root = tmp_path_factory.mktemp("ordering-zoo")
    tiny.make_llama(root / "base")
    tiny.make_lora(root / "base", root / "first", 1, target_modules=["q_proj", "down_proj"])
    tiny.make_lora(root / "base", root / "second", 2, target_modules=["down_proj", "q_proj"])
    tiny.make_lora(root / "base", root / "wide", 3, target_modules=["k_proj", "lm_head"], layers_to_transform=[1])
    options: dict[str, Any] = {"layerwise_scalings": True, "xlora_depth": 1}
    tiny.make_xlora(root / "base", root / "peft", [root / "first", root / "second"], **options)
    tiny.to_xlora_form(root / "peft", root / "xlora", {"ad_1": root / "first", "ad_10": root / "second"})
    return root


EXPECTED = [f"model.layers.{n}.{name}" for n in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj")]


def test_create_from_adapters_that_peft_saved(zoo: Path, out: Path) -> None:
    """The base is the one that the adapter's own configuration names."""
    assert loradesk("create", "--adapter", zoo / "first", "-o", out) == 0
    ordering = OrderingFile.read(out)
    assert ordering == OrderingFile(str(zoo / "base"), ["first"], number_layers(EXPECTED))
    words = ("--adapter", f"a={zoo / 'first'}", "--adapter", zoo / "wide", "--force")
    assert loradesk("create", *words, "-o", out) == 0
    ordering = OrderingFile.read(out)
    assert ordering.order == ("a", "wide")
    assert list(ordering.layers or ()) == [*EXPECTED[:3], "model.layers.1.self_attn.k_proj", EXPECTED[3], "lm_head"]
    assert (
        loradesk("check", out, "--adapter", f"a={zoo / 'first'}", "--adapter", zoo / "wide", "--base", zoo / "base")
        == 0
    )


def test_create_from_an_adapter_without_weights(zoo: Path, out: Path, tmp_path: Path) -> None:
    """As the hub gives it: only the configuration, whose target modules PEFT's rules are applied to."""
    folder = tmp_path / "config-only"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((zoo / "wide" / "adapter_config.json").read_bytes())
    assert loradesk("create", "--base", zoo / "base", "--adapter", folder, "-o", out) == 0
    assert list(OrderingFile.read(out).layers or ()) == ["model.layers.1.self_attn.k_proj", "lm_head"]


def test_create_from_peft_xlora(zoo: Path, out: Path) -> None:
    """PEFT's checkpoint says the order; the classifier's outputs agree."""
    assert loradesk("create", "--xlora", zoo / "peft", "-o", out) == 0
    assert OrderingFile.read(out) == OrderingFile(str(zoo / "base"), ["0", "1"], number_layers(EXPECTED))
    assert loradesk("check", out, "--xlora", zoo / "peft", "--base", zoo / "base") == 0


def test_create_from_mistral_rs_xlora(zoo: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This format does not say the order of training, so it has to be given; containing names are told apart."""
    assert loradesk("create", "--xlora", zoo / "xlora", "-o", out) == 2
    assert "--names is missing" in capsys.readouterr().err
    assert loradesk("create", "--xlora", zoo / "xlora", "--names", "ad_10,ad_1", "-o", out) == 0
    assert OrderingFile.read(out) == OrderingFile(str(zoo / "base"), ["ad_10", "ad_1"], number_layers(EXPECTED))
    capsys.readouterr()
    assert loradesk("check", out, "--xlora", zoo / "xlora", "--base", zoo / "base", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [finding["rule"] for finding in facts["findings"]] == ["name-contained"]
    assert loradesk("create", "--xlora", zoo / "xlora", "--names", "ad_1,ad_2", "-o", out) == 2
    assert "no adapter 'ad_2'. It has ad_1, ad_10." in capsys.readouterr().err
    assert loradesk("create", "--xlora", zoo / "xlora", "--names", "ad_1", "-o", out, "--force") == 2
    assert "has 8 outputs, the file asks for 4" in capsys.readouterr().err


def test_check_finds_a_name_that_the_checkpoint_lacks(zoo: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OrderingFile(str(zoo / "base"), ["ad_1", "ad-10"], number_layers(EXPECTED)).write(out)
    assert loradesk("check", out, "--xlora", zoo / "xlora") == 1
    text = capsys.readouterr().out
    assert f"{out}:5:5: error [order-unknown] Not found: ad-10. Did you mean 'ad_10'?" in text
    assert loradesk("check", out, "--xlora", zoo / "xlora", "--fix") == 0
    assert OrderingFile.read(out).order == ("ad_1", "ad_10")


def test_the_wrong_base_is_refused(zoo: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Phi3ForCausalLM"], "num_hidden_layers": 2}')
    assert loradesk("create", "--xlora", zoo / "peft", "--base", tmp_path, "-o", out) == 2
    assert "modules that" in capsys.readouterr().err
    assert not out.exists()


def test_a_base_that_is_not_there(
    zoo: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cases = {
        "./none": "Neither a file or folder that exists",
        "org/not-in-the-cache": "the repository is not in the cache",
        str(tmp_path): "does not exist",
    }
    for source, message in cases.items():
        assert loradesk("create", "--base", source, "--targets", "q_proj", "-o", out) == 2
        assert message in capsys.readouterr().err
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_bytes((zoo / "first" / name).read_bytes())
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"base_model_name_or_path": "org/gone"}))
    assert loradesk("create", "--adapter", adapter, "-o", out) == 2
    assert "trained on org/gone, which could not be read" in capsys.readouterr().err


@pytest.fixture
def hub(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a base, an adapter, a gated repository, one without a configuration and one of two adapters."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing")
    both = tmp_path / "both"
    for name, own in (("ad_1", "first"), ("ad_10", "wide")):
        shutil.copytree(zoo / own, both / name)
    repositories = {
        "org/model": zoo / "base",
        "org/adapter": zoo / "first",
        "org/gated": zoo / "base",
        "org/empty": tmp_path / "empty",
        "org/both": both,
    }
    with serve(FakeHub(repositories, gated={"org/gated": "secret"})) as server:
        point_at(monkeypatch, server.url, tmp_path / "hub-cache")
        yield server


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("org/gated", "gated"),
        ("org/nobody", "No such repository"),
        ("org/empty", "no such file"),
        ("org/--model", "Neither a file or folder that exists nor the id"),
    ],
)
def test_what_the_hub_says(
    hub: FakeHub, out: Path, repository: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert loradesk("create", "--base", repository, "--targets", "q_proj", "-o", out, "--json") == 2
    facts = json.loads(capsys.readouterr().out)["error"]
    assert facts["kind"] == "HubError"
    assert facts["file"] == repository
    assert message in facts["problem"]


def test_only_configuration_and_headers_are_fetched(hub: FakeHub, out: Path) -> None:
    assert loradesk("create", "--base", "org/model", "--adapter", "n=org/adapter", "-o", out) == 0
    assert OrderingFile.read(out) == OrderingFile("org/model", ["n"], number_layers(EXPECTED))
    assert "model.safetensors" not in hub.served
    weights = hub.repositories["org/adapter"] / "adapter_model.safetensors"
    (length,) = struct.unpack("<Q", weights.read_bytes()[:8])
    assert hub.served["adapter_model.safetensors"] <= max(8 + length, 2**16)


@pytest.mark.parametrize("offline", [True, False], ids=["switched off", "no network"])
def test_without_the_hub_an_id_fails_at_once_with_one_sentence(
    hub: FakeHub, out: Path, offline: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for flags in (("--base", "org/gone", "--targets", "q_proj"), ("--adapter", "n=org/gone")):
        assert loradesk("create", *flags, "-o", out) == 2
        told = capsys.readouterr().err
        assert told.startswith("loradesk: org/gone")
        assert told.count("\n") == 1
        assert "Traceback" not in told
    assert hub.asked == []


# rename, preload, diff


def test_rename(file: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loradesk("rename", file, "--names", "x,y,z", "-o", out) == 0
    assert OrderingFile.read(out).order == ("x", "y", "z")
    assert loradesk("rename", file, "--map", "one=two", "--map", "two=one", "-i") == 0
    assert OrderingFile.read(file).order == ("two", "one")
    assert loradesk("rename", out, "--order-from", file, "-i", "--json") == 0
    assert OrderingFile.read(out).order == ("two", "one")
    capsys.readouterr()
    assert loradesk("rename", file, "--map", "on=x", "-i") == 2
    assert "no adapter 'on'" in capsys.readouterr().err
    assert loradesk("rename", file, "--map", "one", "-i") == 2
    assert "OLD=NEW" in capsys.readouterr().err


def test_preload(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file.read_text()
    assert loradesk("preload", file, "--add", "p=org/p", "--add", "q=/a=b", "-i") == 0
    assert OrderingFile.read(file).preload_adapters == (PreloadAdapter("p", "org/p"), PreloadAdapter("q", "/a=b"))
    assert loradesk("preload", file, "--change", "q=org/q", "--remove", "p", "--add", "p=new", "-i", "--json") == 0
    facts = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert facts["preload_adapters"] == ["q", "p"]
    assert len(facts["changes"]) == 2
    assert loradesk("preload", file, "--remove", "q", "--remove", "p", "-i") == 0
    assert file.read_text() == before
    assert loradesk("preload", file, "--remove", "q", "-i") == 2
    assert loradesk("preload", file, "--add", "q=", "-i") == 2
    assert file.read_text() == before


def test_diff(file: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OrderingFile.read(file).replace(base_model_id="other").write(out)
    assert loradesk("diff", file, file) == 0
    assert loradesk("diff", file, out) == 1
    assert capsys.readouterr().out == 'No differences.\n~ /base_model_id: "org/tiny-base" -> "other"\n'
    assert loradesk("diff", file, out, "--json") == 1
    change = {"kind": "changed", "place": "/base_model_id", "before": "org/tiny-base", "after": "other"}
    assert json.loads(capsys.readouterr().out) == {"changes": [change]}


# check


def test_check(file: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loradesk("check", file, "--base", base, "--mode", "xlora") == 0
    assert capsys.readouterr().out == "No findings.\n"
    assert loradesk("check", file) == 0
    assert "not compared with a model: give --base" in capsys.readouterr().out
    broken = OrderingFile.read(file).replace(order=["one", "one"])
    broken.write(file)
    assert loradesk("check", file, "--base", base) == 1
    assert f"{file}:5:5: error [order-duplicate]" in capsys.readouterr().out
    assert loradesk("check", file, "--base", base, "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["compared_with_model"] is True
    (finding,) = facts["findings"]
    assert {key: finding[key] for key in ("rule", "severity", "place", "line", "column", "fix")} == {
        "rule": "order-duplicate",
        "severity": "error",
        "place": "/order/1",
        "line": 5,
        "column": 5,
        "fix": "Remove repeated names",
    }


def test_check_fix(file: Path, base: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = file.read_text()
    OrderingFile.read(file).replace(order=["one", "", "two"]).write(file)
    broken = file.read_text()
    assert loradesk("check", file, "--base", base, "-o", out) == 2  # nothing to save without --fix
    assert loradesk("check", file, "--base", base, "--fix", "-o", out) == 0
    assert (file.read_text(), out.read_text()) == (broken, good)
    assert loradesk("check", file, "--base", base, "--fix") == 0
    assert file.read_text() == good
    stamp = file.stat().st_mtime_ns
    assert loradesk("check", file, "--base", base, "--fix") == 0
    assert file.stat().st_mtime_ns == stamp  # nothing to mend, nothing written


def test_check_strict_and_rules(file: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OrderingFile.read(file).replace(base_model_id="org/other").write(file)
    assert loradesk("check", file, "--base", base) == 0
    assert loradesk("check", file, "--base", base, "--strict") == 1
    assert "warning [base-mismatch]" in capsys.readouterr().out
    assert loradesk("check", "--rules") == 0
    assert "classifier-outputs" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["check", "rename", "preload", "diff"])
def test_malformed_files(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"order": ["a",\n]}')
    assert loradesk(command, path) == 2
    assert f"loradesk: {path}, line 2, column 1: Not valid JSON" in capsys.readouterr().err
    assert loradesk(command, path, "--json") == 2
    facts = json.loads(capsys.readouterr().out)["error"]
    assert (facts["kind"], facts["field"]) == ("OrderingError", "line 2, column 1")


HOSTILE = ["~nobody-of-this-name/x", "a" * 5000, "a\0b", "a/" + "b" * 3000, "a--b..c", "../../x", "/", "."]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_a_file_do_no_harm(name: str, zoo: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OrderingFile(name, [name, "ad_1"], number_layers(EXPECTED), [PreloadAdapter(name, name)]).write(out)
    assert loradesk("check", out) in (0, 1)
    capsys.readouterr()
    assert loradesk("check", out, "--xlora", zoo / "xlora", "--base", zoo / "base", "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert "order-unknown" in [finding["rule"] for finding in facts["findings"]]


def test_configurations_of_a_wrong_kind(
    zoo: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter without weights, whose configuration holds nonsense where PEFT has names and numbers."""
    values = json.loads((zoo / "first" / "adapter_config.json").read_text())
    for field, value in (
        ("target_modules", 3),
        ("target_modules", [3]),
        ("layers_to_transform", 1.5),
        ("layers_to_transform", {"a": 1}),
        ("layers_pattern", [[]]),
        ("exclude_modules", "("),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(values | {field: value}))
        assert loradesk("create", "--adapter", tmp_path, "--base", zoo / "base", "-o", out) == 2
        assert field in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    assert loradesk("create", "--base", tmp_path, "--targets", "c_attn", "-o", out) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"loradesk: {tmp_path}, architectures: The architecture 'GPT2LMHeadModel'")
    assert not out.exists()


# Overwriting, prompts, processes


def test_nothing_is_overwritten_unasked(file: Path, base: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out.write_text("mine")
    for words in (
        ("create", "--base", base, "--targets", "q_proj", "--names", "a"),
        ("rename", file, "--names", "a"),
        ("preload", file, "--add", "a=b"),
    ):
        assert loradesk(*words, "-o", out) == 2
        assert "was not overwritten. Choose another, or add --force." in capsys.readouterr().err
        assert out.read_text() == "mine"
        assert loradesk(*words, "-o", out, "--force") == 0
        assert out.read_text() != "mine"
        out.write_text("mine")


def test_scripts_are_told_which_flag_is_missing(file: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, flag in (
        (("create",), "--base"),
        (("create", "--base", base), "--targets"),
        (("create", "--base", base, "--targets", "q_proj"), "--output"),
        (("rename", file), "--names"),
        (("rename",), "FILE"),
        (("preload", file), "--add"),
        (("check",), "FILE"),
        (("diff", file), "OTHER"),
    ):
        assert loradesk(*words) == 2
        assert f"{flag} is missing" in capsys.readouterr().err


def test_no_torch_and_no_waiting(base: Path, tmp_path: Path) -> None:
    """A fresh interpreter: torch is not imported, and standard input is not waited for."""
    for words in (
        ["create", "--base", str(base), "--targets", "q_proj", "--names", "a", "-o", "o.json"],
        ["check", "o.json", "--base", str(base)],
        ["rename", "o.json", "--names", "b", "-i"],
        ["diff", "o.json", "o.json", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "ordering", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_create_from_an_xlora_checkpoint_without_torch(zoo: Path, tmp_path: Path) -> None:
    words = ["create", "--xlora", str(zoo / "peft"), "-o", str(tmp_path / "o.json")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "ordering", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_create_from_a_gguf_file_is_create_from_its_folder(out: Path) -> None:
    demo = resource_path("demo")
    made = []
    for base in ("base", "base-q8_0.gguf"):
        words = ("create", "--base", demo / base, "--base-id", "b", "--targets", "q_proj,down_proj", "--names", "a")
        assert loradesk(*words, "-o", out, "--force") == 0
        made.append(out.read_text(encoding="utf-8"))
    assert made[0] == made[1]
    assert len(OrderingFile.read(out).layers or ()) == 12


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_prompts_with_completion(base: Path, out: Path) -> None:
    """A person who types, completes with the tab key and says yes; as mistral.rs' scripts ask."""
    out.write_text("old")
    screen, code = in_terminal(
        ["create"],
        [
            ("Base model", f"{base}\n"),
            ("Target modules", "q_\t, v_p\t\n"),
            ("Adapter names", "a, b\n"),
            ("Output file", f"{str(out)[:-6]}\t\n"),
            ("exists. Overwrite it? [y/N]", "y\n"),
        ],
    )
    assert code == 0, screen
    ordering = OrderingFile.read(out)
    assert ordering.order == ("a", "b")
    assert {path.rpartition(".")[2] for path in ordering.layers or ()} == {"q_proj", "v_proj"}


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("answer", ["n\n", "\n", "\x04"])
def test_a_person_who_does_not_say_yes(file: Path, out: Path, answer: str) -> None:
    out.write_text("old")
    questions = [
        ("Ordering file", f"{file}\n"),
        ("to preload", "p\n"),
        ("loaded from", "org/p\n"),
        ("Output file", f"{out}\n"),
        ("Overwrite it?", answer),
    ]
    screen, code = in_terminal(["preload"], questions)
    assert code == 2, screen
    assert out.read_text() == "old"


def in_terminal(words: list[str], talk: list[tuple[str, str]]) -> tuple[str, int]:
    """Run a command in a pseudo-terminal, typing each answer after its question: what was shown, and the exit code."""
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "dumb"
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, "ordering", *words])
    screen = b""
    try:
        for question, answer in talk:
            mark = len(screen)
            while question.encode() not in screen[mark:].replace(b"\r", b"").replace(b"\n", b""):
                screen += os.read(terminal, 4096)
            os.write(terminal, answer.encode())
        while True:
            screen += os.read(terminal, 4096)
    except OSError:  # Linux: the other end is closed
        pass
    os.close(terminal)
    return screen.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# looking at adapters, answers that are piped, several faults at once


def piped(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_answers_may_be_piped(
    base: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, str(base), "q_proj, v_proj", "one,two", str(out))
    assert loradesk("create") == 0
    ordering = OrderingFile.read(out)
    assert (ordering.order, len(ordering.layers or ())) == (("one", "two"), 4)
    piped(monkeypatch, str(out), "p,q", "org/both")
    assert loradesk("preload", "-i") == 0
    entries = (PreloadAdapter("p", "org/both"), PreloadAdapter("q", "org/both"))
    assert OrderingFile.read(out).preload_adapters == entries
    piped(monkeypatch, str(base))
    capsys.readouterr()
    assert loradesk("create") == 2
    assert "--targets is missing, and the input has ended" in capsys.readouterr().err


def test_a_misspelt_target_is_refused_before_the_next_question_and_can_be_allowed(
    base: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("create", "--base", base, "--targets", "q_porj,v_proj", "-o", out)
    piped(monkeypatch, "never,read")
    assert loradesk(*flags) == 2
    told = capsys.readouterr().err
    assert "no linear 'q_porj'. Did you mean 'q_proj'?" in told
    assert "--allow-missing" in told
    assert sys.stdin.read() == "never,read\n"
    assert loradesk(*flags, "--names", "a", "--allow-missing") == 0
    assert len(OrderingFile.read(out).layers or ()) == 2
    assert loradesk("create", "--base", base, "--targets", "nothing", "--allow-missing", "--names", "a", "-o", "-") == 2
    out.unlink()
    piped(monkeypatch, "q_porj,v_proj", "n", "q_proj", "a")  # asked again
    assert loradesk("create", "--base", base, "-o", out) == 0
    out.unlink()
    piped(monkeypatch, "q_porj,v_proj", "y", "a")
    assert loradesk("create", "--base", base, "-o", out) == 0
    assert len(OrderingFile.read(out).layers or ()) == 2


def test_embeddings_may_be_targets(zoo: Path, out: Path) -> None:
    """Numbered as transformers registers the modules."""
    assert (
        loradesk("create", "--base", zoo / "base", "--targets", "q_proj,embed_tokens", "--names", "a", "-o", out) == 0
    )
    model = tiny.load(zoo / "base")
    registered = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ("q_proj", "embed_tokens")]
    assert OrderingFile.read(out).layers == number_layers(registered)
    assert loradesk("check", out, "--base", zoo / "base") == 0
    assert (
        loradesk("create", "--base", zoo / "base", "--targets", "all-linear", "--names", "a", "-o", out, "--force") == 0
    )
    assert "model.embed_tokens" not in (OrderingFile.read(out).layers or {})


def test_preload_replaces(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loradesk("preload", file, "--add", "p=org/p", "--add", "q=org/q", "-i") == 0
    assert loradesk("preload", file, "--replace", "--add", "q=org/new", "-i") == 0
    assert OrderingFile.read(file).preload_adapters == (PreloadAdapter("q", "org/new"),)
    piped(monkeypatch, "r", "org/r", "y")
    assert loradesk("preload", file, "-i") == 0
    assert OrderingFile.read(file).preload_adapters == (PreloadAdapter("r", "org/r"),)
    piped(monkeypatch, "s", "org/s", "n")
    assert loradesk("preload", file, "-i") == 0
    assert [entry.name for entry in OrderingFile.read(file).preload_adapters or ()] == ["r", "s"]


def test_check_looks_at_preload_adapters(
    hub: FakeHub, zoo: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {"ad_1": "both", "ad_10": "both", "ad_2": "both", "gone": "./gone", "away": "org/nobody"}
    preloads = [PreloadAdapter(*entry) for entry in entries.items()]
    OrderingFile("org/tiny-base", None, None, preloads).write(file)
    assert loradesk("check", file, "--base", zoo / "base", "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["not_looked_at"] == ["away"]
    found = {finding["place"]: finding for finding in facts["findings"]}
    places = [f"/preload_adapters/{number}/adapter_model_id" for number in range(5)]
    assert [found[place]["rule"] if place in found else None for place in places] == [
        None, None, "preload-broken", "preload-missing", None
    ]  # fmt: skip
    assert "No adapter named 'ad_2'" in found[places[2]]["message"]
    assert hub.asked == []
    OrderingFile("org/tiny-base", None, None, [PreloadAdapter("ad_1", "org/both")]).write(file)
    assert loradesk("check", file, "--base", zoo / "base") == 0
    assert "Not downloaded, so not looked at: ad_1." in capsys.readouterr().out
    assert loradesk("check", file, "--base", zoo / "base", "--hub") == 0
    assert "Not downloaded" not in capsys.readouterr().out
    OrderingFile("org/tiny-base", None, None, [PreloadAdapter("ad_3", "org/both")]).write(file)
    assert loradesk("check", file, "--base", zoo / "base", "--hub") == 1
    assert "There are ad_1, ad_10" in capsys.readouterr().out


def test_preload_refuses_what_is_not_in_a_folder_that_is_here(
    zoo: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file.read_bytes()
    assert loradesk("preload", file, "--add", f"ad_1={zoo / 'xlora'}", "--add", f"ad_3={zoo / 'xlora'}", "-i") == 2
    assert "No adapter named 'ad_3' is here. There are ad_1, ad_10." in capsys.readouterr().err
    assert file.read_bytes() == before
    assert loradesk("preload", file, "--add", f"ad_1={zoo / 'xlora'}", "-i") == 0


def test_one_repository_is_checked_for_all_names_of_order(
    zoo: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OrderingFile(str(zoo / "base"), ["ad_1", "ad_10"]).write(file)
    assert loradesk("check", file, "--adapters", zoo / "xlora") == 0
    OrderingFile(str(zoo / "base"), ["ad_1", "ad_2"]).write(file)
    capsys.readouterr()
    assert loradesk("check", file, "--adapters", zoo / "xlora") == 2
    assert "No adapter named 'ad_2'" in capsys.readouterr().err


def test_create_reads_a_repository_of_adapters_by_name(hub: FakeHub, out: Path) -> None:
    assert loradesk("create", "--base", "org/model", "--adapter", "ad_1=org/both", "-o", out) == 0
    assert OrderingFile.read(out) == OrderingFile("org/model", ["ad_1"], number_layers(EXPECTED))


def test_check_goes_on_after_the_first_fault_of_structure(
    base: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """{
  "base_model_id": "org/tiny-base",
  "order": ["one", 2, "one"],
  "layers": {
    "model.layers.0.self_attn.q_proj": 0,
    "model.layers.0.self_attn.w_proj": 1
  },
  "preload_adapters": [{"name": "one"}, "two"],
  "Order": []
}"""
    file.write_text(text)
    assert loradesk("check", file, "--base", base) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0].removeprefix(str(file)) for line in lines[:3]] == [":3:20", ":8:24", ":8:41"]
    assert all("error [structure]" in line for line in lines[:3])
    assert any(":6:40: error [layer-not-in-model]" in line for line in lines)
    assert not any("[order-duplicate]" in line or "--fix" in line for line in lines)
    assert loradesk("check", file, "--base", base, "--fix") == 2
    assert file.read_text() == text
