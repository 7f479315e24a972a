"""A tokenizer with more ids than the model has embeddings: Gemma 3's 1B has a token for images, and no row for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from tokenizers import Tokenizer

from loradesk_engine.commands import ChatRequest, CompletionRequest, LoadSettings, Message, Sampling
from loradesk_engine.errors import RequestError
from loradesk_engine.events import TokensGenerated
from loradesk_engine.generation.engine import EngineCore

IMAGE = "<image_soft_token>"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineCore:
    folder = tmp_path_factory.mktemp("base")
    tiny.make_llama(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([IMAGE])
    assert tokenizer.token_to_id(IMAGE) == tiny.VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    return EngineCore.load(LoadSettings(base=str(folder), dtype="float32"))


def test_such_a_model_loads_and_answers_without_the_token(engine: EngineCore) -> None:
    assert engine.info.warnings == ()
    engine.submit(CompletionRequest("hot", "Hello", Sampling(max_tokens=40, temperature=50.0, ignore_end=True)))
    found: list[int] = []
    while engine.busy:
        found += [token for event in engine.step() if isinstance(event, TokensGenerated) for token in event.token_ids]
    assert len(found) == 40
    assert max(found) < tiny.VOCABULARY


@pytest.mark.parametrize(
    ("request_of", "field", "named"),
    [
        (lambda s: ChatRequest("r", (Message("user", f"look {IMAGE}"),), s), "messages", f"'{IMAGE}' (id 260)"),
        (lambda s: CompletionRequest("r", f"look {IMAGE}", s), "prompt", f"'{IMAGE}' (id 260)"),
        (lambda s: CompletionRequest("r", (65, tiny.VOCABULARY), s), "prompt", f"'{IMAGE}' (id 260)"),
        (lambda s: CompletionRequest("r", (65, 2**40), s), "prompt", "id 1099511627776"),
        (lambda s: CompletionRequest("r", (65, -1), s), "prompt", "id -1"),
    ],
)
def test_a_prompt_with_the_token_is_refused_by_its_name(
    engine: EngineCore, request_of: Any, field: str, named: str
) -> None:
    with pytest.raises(RequestError) as caught:
        engine.submit(request_of(Sampling()))
    assert caught.value.field == field
    assert named in caught.value.problem
    assert not engine.busy


@pytest.mark.parametrize("field", ["logit_bias", "stop_token_ids"])
def test_neither_can_it_stop_an_answer_nor_be_made_likely(engine: EngineCore, field: str) -> None:
    ids: Any = {tiny.VOCABULARY: 1.0} if field == "logit_bias" else (tiny.VOCABULARY,)
    with pytest.raises(RequestError) as caught:
        engine.submit(CompletionRequest("r", "Hello", Sampling(**{field: ids})))
    assert caught.value.field == field
    assert IMAGE in caught.value.problem


def test_a_tokenizer_of_another_model_gives_a_warning(tmp_path: Path) -> None:
    tiny.make_llama(tmp_path, vocab_size=100, eos_token_id=None)
    engine = EngineCore.load(LoadSettings(base=str(tmp_path), dtype="float32"))
    assert any("256 pieces, the model 100" in warning for warning in engine.info.warnings)
    with pytest.raises(RequestError, match="'z'"):
        engine.submit(CompletionRequest("r", "z", Sampling()))


def test_the_tokenizer_of_the_fixture_has_the_token_beyond_the_rows(engine: EngineCore) -> None:
    config = json.loads((Path(engine.settings.base) / "config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == tiny.VOCABULARY
    assert engine.tokenizer.encode(IMAGE) == [tiny.VOCABULARY]
