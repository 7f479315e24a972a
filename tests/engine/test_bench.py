"""`loradesk bench`: what it runs, what it leaves out, and what it says. Nothing here asserts a speed."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from support import gguf_files, tiny
from support.clock import PATIENCE

from loradesk_engine.bench import worker
from loradesk_engine.bench.engine_contender import greedy, timed_answer
from loradesk_engine.bench.engine_measures import temperature_for
from loradesk_engine.bench.figures import Sample, figure
from loradesk_engine.bench.measure import FEWEST_TOKENS, measure, share_of
from loradesk_engine.bench.plan import WORKS, Plan
from loradesk_engine.bench.prompts import Prompts
from loradesk_engine.bench.random_adapters import LOUD, RandomAdapter, write_adapter
from loradesk_engine.bench.shapes import SHAPES, shape_config, tensor_shapes
from loradesk_engine.bench.subject import ShapeSubject
from loradesk_engine.bench.table import table
from loradesk_engine.cli import main
from loradesk_engine.formats.peft import read_adapter

FIGURE = {"median", "low", "high", "samples"}
STAND_IN = """
import os, time
__version__ = "9.9.9"
class Llama:
    def __init__(self, file, **options):
        print("noise on the standard output", flush=True)
    def reset(self):
        pass
    def eval(self, ids):
        if {crash}:
            os.write(2, b"out of cheese\\n")
            os._exit(7)
    def sample(self, temp):
        time.sleep(0.001)
        return 3
"""


def bench(tmp_path: Path, *options: str) -> dict[str, Any]:
    """The saved report of a quick run."""
    file = tmp_path / "report.json"
    assert main(["bench", *options, "--quick", "--threads", "1", "--device", "cpu", "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """The benchmark collects garbage after every model, which takes long with all that the tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All works on the tiny shape."""
    return bench(tmp_path_factory.mktemp("bench"), "--shape", "tiny", "--targets", "q_proj,v_proj")


@pytest.fixture(scope="module")
def beside_peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Some works with the peers that run in this process, and one that takes no shapes."""
    works, peers = "base,lora-1,lora-9,xlora-two-pass,xlora", "transformers,peft,llama-cpp"
    options = ("--shape", "tiny", "--targets", "q_proj", "--xlora-adapters", "2", "--work", works, "--peers", peers)
    return bench(tmp_path_factory.mktemp("bench"), *options)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    gguf_files.write(tiny.make_llama(folder / "base"), folder / "tiny.gguf", "llama", "Q8_0")
    return folder / "tiny.gguf"


def test_every_work_has_its_figures(whole: dict[str, Any]) -> None:
    assert [work["name"] for work in whole["works"]] == list(WORKS)
    for work in whole["works"]:
        ours = work["contenders"]["loradesk"]
        assert ours["prompt_tokens"] == 32
        assert ours["new_tokens"] == 6
        for name in ("first_token_seconds", "prompt_tokens_per_second", "token_seconds"):
            assert set(ours[name]) == FIGURE
            assert len(ours[name]["samples"]) == whole["plan"]["runs"]
            assert 0 < ours[name]["low"] <= ours[name]["median"] <= ours[name]["high"]
        assert ours["load_seconds"] is None  # making random weights is no load
        assert ours["peak_memory_bytes"] is None or ours["peak_memory_bytes"] >= 0
    assert whole["floor"]["token_seconds"] > 0
    assert whole["floor"]["weight_bytes"] == 4 * whole["floor"]["parameters"]
    assert whole["subject"]["weights"] == "random"
    assert {"processor", "cores", "memory_bytes", "torch", "python", "accelerator", "kernels"} <= set(whole["machine"])


def test_what_only_the_engine_is_measured_by(whole: dict[str, Any]) -> None:
    for work in whole["works"]:
        kind = WORKS[work["name"]]
        assert ("next_turns" in work) == kind.next_turn
        assert ("activation" in work) == kind.activation
        assert ("throughput" in work) == (kind.batch is not None)
        for turn in work.get("next_turns", ()):
            assert turn["cached_tokens"] == turn["history_tokens"]  # nothing of the history is computed again
            assert turn["first_token_seconds"]["median"] > 0
        if "activation" in work:
            assert work["activation"]["next_token_uses_it"] is True
            assert work["activation"]["call_seconds"]["median"] > 0
        assert [row["sequences"] for row in work.get("throughput", ())] in ([], [1, 2])
        assert all(row["tokens_per_second"]["low"] > 0 for row in work.get("throughput", ()))


def test_shares_of_right_guesses(whole: dict[str, Any]) -> None:
    guesses = {work["name"]: work["guesses"] for work in whole["works"] if "guesses" in work}
    assert list(guesses) == ["xlora"]
    found = guesses["xlora"]
    # the random experts change nearly nothing, so the base guesses what the model says
    assert found["greedy"]["first_right"] == found["greedy"]["scalings_ready"] == 1.0
    assert 0 <= found["drawn"]["first_right"] <= found["drawn"]["scalings_ready"] <= 1
    assert found["wanted_share"] == 0.9


def test_peers_answer_or_are_left_out_with_a_reason(beside_peers: dict[str, Any]) -> None:
    works = {work["name"]: work for work in beside_peers["works"]}
    for name, peer in (("base", "transformers"), ("lora-1", "peft"), ("lora-9", "peft"), ("xlora", "peft")):
        theirs = works[name]["contenders"][peer]
        assert "left_out" not in theirs, theirs
        assert theirs["prompt_tokens"] == 32
        assert theirs["new_tokens"] >= FEWEST_TOKENS
        ratio = works[name]["ratios"][peer]["token_seconds"]
        ours = works[name]["contenders"]["loradesk"]["token_seconds"]
        assert ratio["samples"][0] == pytest.approx(theirs["token_seconds"]["samples"][0] / ours["samples"][0])
    assert works["lora-1"]["contenders"]["transformers"] == {"left_out": "transformers runs adapters through PEFT."}
    assert works["base"]["contenders"]["llama-cpp"] == {"left_out": "llama-cpp is measured on GGUF files only."}
    assert works["xlora-two-pass"]["ratios"] == {}


def test_the_table_says_what_the_report_holds(whole: dict[str, Any], beside_peers: dict[str, Any]) -> None:
    for report in (whole, beside_peers):
        text = table(report)
        for work in report["works"]:
            assert f"| {work['title']} | loradesk " in text
        assert "| yes |" in text
        for part in text.split("\n\n"):
            lines = [line for line in part.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) <= 1
    assert "Left out" not in table(whole)
    assert "| base model | transformers " in text
    assert "- llama-cpp (base, lora-1, " in text


def test_a_saved_run_is_shown_again(whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "saved.json"
    part = whole | {"works": whole["works"][:2]}  # of a run that was stopped
    file.write_text(json.dumps(part), encoding="utf-8")
    assert main(["bench", "--show", str(file)]) == 0
    assert capsys.readouterr().out == table(part) + "\n"


def test_what_is_no_report_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"works": 3}', encoding="utf-8")
    assert main(["bench", "--show", str(file)]) == 1
    assert capsys.readouterr().err == (
        f"loradesk: {file}: This is no report of `loradesk bench`. Choose a file that --json saved.\n"
    )


def test_the_report_grows_by_each_work(tmp_path: Path) -> None:
    plan = Plan().quick()
    subject = ShapeSubject("tiny", plan, tmp_path, "cpu", "float32")
    seen: list[list[str]] = []

    def work_done(report: dict[str, Any]) -> None:
        seen.append([work["name"] for work in report["works"]])
        assert "| loradesk " in table(report)

    works = [WORKS["xlora-two-pass"], WORKS["xlora-non-granular"]]
    measure(subject, works, (), plan, threads=1, quick=True, work_done=work_done)
    assert seen == [["xlora-two-pass"], ["xlora-two-pass", "xlora-non-granular"]]


def test_a_model_on_disk_is_loaded_as_users_load_it(tiny_gguf: Path, tmp_path: Path) -> None:
    report = bench(tmp_path, str(tiny_gguf), "--work", "base,lora-9,xlora-non-granular", "--targets", "all")
    assert report["subject"]["name"] == "tiny.gguf"
    assert report["subject"]["weights"] == "file"
    assert report["subject"]["adapted_linears"] == 14  # all but lm_head
    for work in report["works"]:
        assert work["contenders"]["loradesk"]["load_seconds"]["median"] > 0


@pytest.mark.parametrize("crash", [False, True])
def test_a_peer_in_a_process_of_its_own(
    crash: bool, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    (library / "llama_cpp_python-9.9.9.dist-info").mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 9.9.9\n"
    (library / "llama_cpp_python-9.9.9.dist-info" / "METADATA").write_text(metadata, encoding="utf-8")
    (library / "llama_cpp.py").write_text(STAND_IN.format(crash=crash), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(library))
    report = bench(tmp_path, str(tiny_gguf), "--work", "base,lora-1", "--peers", "llama-cpp")
    base, lora = (work["contenders"]["llama-cpp"] for work in report["works"])
    assert lora == {"left_out": "llama.cpp takes adapters as GGUF files only, and has no X-LoRA."}
    if crash:
        assert base == {"left_out": "The process of llama-cpp ended: out of cheese."}
        return
    assert base["version"] == "9.9.9"
    assert base["prompt_tokens"] == 32
    assert base["load_seconds"]["median"] > 0
    assert set(report["works"][0]["ratios"]["llama-cpp"]["load_seconds"]) == FIGURE


def test_a_peer_that_is_not_installed_is_left_out(tiny_gguf: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "python"
    options = ("--work", "base", "--peers", "mistralrs", "--peer-python", f"mistralrs={missing}")
    report = bench(tmp_path, str(tiny_gguf), *options)
    reason = report["works"][0]["contenders"]["mistralrs"]["left_out"]
    assert reason == f"{missing} cannot be run: No such file or directory."
    assert reason in table(report)


def test_the_worker_says_that_its_peer_is_not_installed() -> None:
    bare = [sys.executable, "-I", "-S", worker.__file__, "mistralrs"]  # without installed packages
    done = subprocess.run(bare, input="", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["problem"].startswith("mistralrs is not installed there")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--shape", "nano"], "--shape: There is no shape 'nano'. Choose of mistral-7b, "),
        ([], "--shape: Name one model. "),
        (["some/folder", "--shape", "tiny"], "--shape: Name one model. "),
        (["--shape", "tiny", "--work", "base,magic"], "--work: There is no work 'magic'. Choose of base, "),
        (["--shape", "tiny", "--work", ","], "--work: No work is named. "),
        (["--shape", "tiny", "--peers", "vllm"], "--peers: There is no peer 'vllm'. Choose of transformers, "),
        (["--shape", "tiny", "--peer-python", "mistralrs"], "--peer-python: 'mistralrs' is not NAME=PATH. "),
        (["--shape", "tiny", "--targets", "query"], "--targets: The model has no linear 'query'. Choose of q_proj, "),
        (["--shape", "tiny", "--device", "abacus"], "device: There is no device 'abacus' here. "),
        (["--shape", "tiny", "--tokens", "1"], "--tokens: 1 is too few. "),
        (["--shape", "tiny", "--adapters-rank", "0"], "--adapters-rank: 0 is too few. "),
        (["--shape", "tiny", "--threads", "0"], "--threads: 0 is too few. "),
        (["--shape", "tiny", "--hit-rate", "1.5"], "--hit-rate: 1.5 is not a share. "),
    ],
)
def test_wrong_options_are_named(options: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 1
    assert capsys.readouterr().err.startswith(f"loradesk: {problem}")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_transformers(name: str) -> None:
    config = transformers.AutoConfig.for_model(**shape_config(name))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]
    assert tensor_shapes(shape_config(name)) == theirs


def test_random_adapters_are_the_same_in_memory_and_for_peft(tmp_path: Path) -> None:
    subject = ShapeSubject("tiny", Plan().quick(), tmp_path / "files", "cpu", "float32")
    drawn = RandomAdapter(subject.layout, 3, LOUD)
    written = read_adapter(write_adapter(subject.layout, 3, LOUD, tmp_path / "adapter"))
    assert {path: (m.rank, m.scale) for path, m in written.modules.items()} == {
        path: (m.rank, m.scale) for path, m in drawn.modules.items()
    }
    for path, module in written.modules.items():
        for ours, theirs in zip(drawn.weights(drawn.modules[path]), written.weights(module), strict=True):
            assert torch.equal(ours, theirs)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**shape_config("tiny")))
    adapted = PeftModel.from_pretrained(model, tmp_path / "adapter").state_dict()
    path = "model.layers.1.mlp.gate_proj"
    loaded = adapted[f"base_model.model.{path}.lora_B.default.weight"]
    assert torch.equal(loaded, drawn.weights(drawn.modules[path])[1])


def test_an_answer_is_timed_from_its_events(tmp_path: Path) -> None:
    engine = ShapeSubject("tiny", Plan().quick(), tmp_path, "cpu", "float32").engine(WORKS["xlora"])
    prompts = Prompts(512, engine.tokenizer.decode)
    answer = timed_answer(engine, prompts.next(20).ids, greedy(5, logprobs=3))
    assert (answer.sample.prompt_tokens, answer.sample.new_tokens, answer.cached) == (20, 5, 0)
    assert (answer.first_right, answer.scalings_ready) == (1.0, 1.0)
    assert [len(values) for values in answer.candidates] == [3] * 5
    assert timed_answer(engine, prompts.next(20).ids, greedy(5)).cached == 0  # no two prompts share a beginning


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_the_temperature_gives_the_share(share: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs = torch.log_softmax(4 * torch.randn(200, 20, generator=generator, dtype=torch.float64), dim=-1)
    temperature = temperature_for(share, logprobs.tolist())
    likeliest = torch.softmax(logprobs / temperature, dim=-1).max(dim=-1).values
    assert likeliest.mean().item() == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("token_seconds", "tokens", "runs"),
    [(0.001, 64, 5), (0.5, 16, 5), (3.0, 4, 4), (30.0, FEWEST_TOKENS, 0)],
)
def test_a_slow_peer_gives_fewer_answers(token_seconds: float, tokens: int, runs: int) -> None:
    sample = Sample(512, 4, 0.5, 3 * token_seconds)
    assert share_of(sample, Plan(peer_seconds=40.0)) == (tokens, runs)


def test_a_figure_keeps_its_samples() -> None:
    assert figure([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "samples": [3.0, 1.0, 2.0]}
