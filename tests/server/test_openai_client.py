"""OpenAI's own client, with its strict validation of answers."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from support.clock import wait_until

from loradesk_engine.formats.tokenizer import read_tokenizer
from loradesk_engine.serving.http import HttpServer
from loradesk_resources import resource_path

from .conftest import KEY, MODEL, Stage, client_of

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
GREEDY = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def ai(server: HttpServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_models(ai: openai.OpenAI) -> None:
    names = [model.id for model in ai.models.list()]
    assert names == [MODEL, "arithmetic", "capitals", "json", "bard"]
    assert ai.models.retrieve("capitals").id == "capitals"
    with pytest.raises(openai.NotFoundError) as caught:
        ai.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


def test_chat(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model="arithmetic", messages=QUESTION, **GREEDY)
    assert "42" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    base = ai.chat.completions.create(model=MODEL, messages=QUESTION, **GREEDY)
    assert "42" not in base.choices[0].message.content


def test_an_answer_can_be_sent_back(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(model="arithmetic", messages=QUESTION, **GREEDY)
    conversation = [*QUESTION, answer.choices[0].message, {"role": "user", "content": "What is 6 times 7?"}]
    assert (
        "42"
        in ai.chat.completions.create(model="arithmetic", messages=conversation, **GREEDY).choices[0].message.content
    )


def test_a_stream_is_the_answer_in_pieces_with_its_counts(ai: openai.OpenAI) -> None:
    whole = ai.chat.completions.create(model="capitals", messages=QUESTION, **GREEDY)
    chunks = list(
        ai.chat.completions.create(
            model="capitals", messages=QUESTION, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(ai.chat.completions.create(model="capitals", messages=QUESTION, stream=True, **GREEDY))
    assert all(chunk.usage is None for chunk in plain)


def test_log_probabilities(ai: openai.OpenAI) -> None:
    wanted = {"logprobs": True, "top_logprobs": 3}
    answer = ai.chat.completions.create(model="arithmetic", messages=QUESTION, **GREEDY, **wanted)
    content = answer.choices[0].logprobs.content
    assert "".join(item.token for item in content) == answer.choices[0].message.content
    assert len(content) == answer.usage.completion_tokens
    for item in content:
        assert len(item.top_logprobs) == 3
        assert item.top_logprobs[0].token == item.token
        assert item.top_logprobs[0].logprob == pytest.approx(item.logprob)
        assert bytes(item.bytes).decode() == item.token
    stream = ai.chat.completions.create(model="arithmetic", messages=QUESTION, stream=True, **GREEDY, **wanted)
    pieces = [item for chunk in stream if chunk.choices[0].logprobs for item in chunk.choices[0].logprobs.content]
    assert [item.token for item in pieces] == [item.token for item in content]


def test_parts_of_characters_have_their_bytes(ai: openai.OpenAI) -> None:
    """The bytes of the tokens put together are the answer, as OpenAI's reference says."""
    fox = "🦊".encode()
    pieces = read_tokenizer(resource_path("demo") / "base").encode("🦊")
    assert len(pieces) > 1
    for piece in pieces:
        wanted = {"temperature": 0, "max_tokens": 1, "logit_bias": {str(piece): 100}}
        chat = ai.chat.completions.create(model=MODEL, messages=QUESTION, logprobs=True, top_logprobs=20, **wanted)
        item = chat.choices[0].logprobs.content[0]
        assert bytes(item.bytes) in fox
        assert len({bytes(other.bytes) for other in item.top_logprobs}) == 20
        text = ai.completions.create(model=MODEL, prompt="Hello", logprobs=20, **wanted).choices[0].logprobs
        assert text.tokens == ["bytes:" + "".join(f"\\x{byte:02x}" for byte in item.bytes)]
        assert len(text.top_logprobs[0]) == 20


def test_offsets_are_places_in_the_text(ai: openai.OpenAI) -> None:
    answer = ai.completions.create(model=MODEL, prompt="Once upon a time", logprobs=0, **GREEDY).choices[0]
    places = answer.logprobs.text_offset
    for token, start in zip(answer.logprobs.tokens, places, strict=True):
        assert answer.text[start : start + len(token)] == token


def test_of_several_prompts_a_refused_one_is_a_plain_error(ai: openai.OpenAI, server: HttpServer) -> None:
    prompts = ["Once upon a time"] * 3 + ["word " * 5000]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ai.completions.create(model=MODEL, prompt=prompts, stream=stream, **GREEDY)
        assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with client_of(server) as plain:
        idle = "\nloradesk_generations_running 0\n"
        wait_until(lambda: idle in plain.get("/metrics").text, "the end of the others, which were cancelled")


def test_several_choices_with_a_seed(ai: openai.OpenAI) -> None:
    wanted = {"model": MODEL, "messages": QUESTION, "temperature": 1.0, "max_tokens": 20, "n": 3, "seed": 7}
    first = ai.chat.completions.create(**wanted)
    again = ai.chat.completions.create(**wanted)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    parts = {0: "", 1: "", 2: ""}
    for chunk in ai.chat.completions.create(stream=True, **wanted):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(parts.values()) == texts


def test_stop_and_logit_bias(ai: openai.OpenAI) -> None:
    full = ai.chat.completions.create(model="arithmetic", messages=QUESTION, **GREEDY).choices[0].message.content
    cut = ai.chat.completions.create(model="arithmetic", messages=QUESTION, stop=["="], **GREEDY).choices[0]
    assert cut.message.content == full.partition("=")[0]
    assert cut.finish_reason == "stop"
    forced = ai.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_tokens=3, logit_bias={"300": 100}
    )
    assert forced.choices[0].finish_reason == "length"
    word = forced.choices[0].message.content
    assert word == word[: len(word) // 3] * 3


def test_text_completions(ai: openai.OpenAI) -> None:
    answer = ai.completions.create(model=MODEL, prompt="Once upon a time", logprobs=2, **GREEDY)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.top_logprobs[0]) == 2
    assert logprobs.text_offset[0] == 0
    several = ai.completions.create(model=MODEL, prompt=["Once upon a time", "Hello"], **GREEDY)
    assert several.choices[0].text == answer.choices[0].text
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.usage.prompt_tokens > answer.usage.prompt_tokens
    # The client's type of a chunk has no null for `finish_reason`, which OpenAI's own streams carry until the end.
    with openai.OpenAI(base_url=ai.base_url, api_key=KEY, max_retries=0) as lenient:
        stream = lenient.completions.create(model=MODEL, prompt="Once upon a time", stream=True, **GREEDY)
        assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text
    ids = ai.completions.create(model=MODEL, prompt=[10, 11, 12], **GREEDY)
    assert ids.usage.prompt_tokens == 3


def test_errors_are_the_clients_exceptions(ai: openai.OpenAI, server: HttpServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.chat.completions.create(model=MODEL, messages=QUESTION, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        ai.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as long:
        ai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 5000}])
    assert (long.value.param, long.value.code) == ("messages", "context_length_exceeded")
    with pytest.raises(openai.BadRequestError) as tools:
        ai.chat.completions.create(
            model=MODEL, messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert tools.value.param == "tools"
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong-key-123", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_fields_without_effect_are_named(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.with_raw_response.create(
        model=MODEL, messages=QUESTION, user="me", store=False, metadata={"a": "b"}, **GREEDY
    )
    assert answer.headers["x-loradesk-ignored"] == "user, metadata, store"


def test_the_asynchronous_client(server: HttpServer) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True
        ) as ai:
            answers = await asyncio.gather(
                *(
                    ai.chat.completions.create(model=name, messages=QUESTION, **GREEDY)
                    for name in ("arithmetic", "capitals", "arithmetic")
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    first, other, second = asyncio.run(ask())
    assert "42" in first
    assert first == second != other


def test_scalings_in_stream_and_answer(xlora: Stage) -> None:
    server = xlora.serve()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, _strict_response_validation=True) as ai:
        wanted = {"model": MODEL, "messages": QUESTION, **GREEDY}
        answer = ai.chat.completions.create(**wanted, extra_body={"include_scalings": "layers"})
        whole = answer.choices[0].model_extra["loradesk_scalings"]
        tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert len(whole["mean"]) == len(whole["tokens"]) == len(whole["layers"]) == tokens - whole["start"]
        assert whole["adapters"] == ["arithmetic", "capitals", "json", "bard"]
        for row, layers in zip(whole["mean"], whole["layers"], strict=True):
            assert sum(row) == pytest.approx(1.0, abs=1e-4)
            assert [sum(column) / len(layers) for column in zip(*layers, strict=True)] == pytest.approx(row, abs=1e-5)
        means = [sum(column) for column in zip(*whole["mean"][answer.usage.prompt_tokens :], strict=True)]
        assert means[0] == max(means)

        chunks = list(ai.chat.completions.create(**wanted, stream=True, extra_body={"include_scalings": True}))
        parts = [chunk.model_extra["loradesk_scalings"] for chunk in chunks if chunk.model_extra]
        assert parts
        assert all("layers" not in part for part in parts)
        after = parts[0]["start"]
        for part in parts:
            assert part["start"] == after
            after += len(part["mean"])
        assert after == tokens
        silent = ai.chat.completions.create(**wanted)
        assert not silent.choices[0].model_extra


def test_scalings_need_a_classifier(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ai.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"include_scalings": True})
    assert caught.value.param == "include_scalings"
