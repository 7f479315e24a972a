"""Wrong parameters: 400 that names the field, in OpenAI's shape."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .conftest import MODEL, chat

HUGE = "9" * 5000
WRONG_NUMBERS = ("-1", "1e999", "-1e999", "NaN", "Infinity", "-Infinity", HUGE, f"-{HUGE}", '"1"', "[]", "{}", "true")
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "n",
    "max_tokens",
    "seed",
    "top_logprobs",
    "max_completion_tokens",
)
SIGNED = ("presence_penalty", "frequency_penalty")


def ask(client: httpx.Client, path: str, fields: dict[str, str]) -> dict[str, Any]:
    body: dict[str, Any] = chat("hello")
    if path == "/v1/completions":
        del body["messages"]
        body["prompt"] = "hello"
    texts = {name: json.dumps(value) for name, value in body.items()} | fields
    content = "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}"
    answer = client.post(path, content=content.encode(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, (fields, answer.status_code, answer.text[:200])
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) <= 1000
    return error


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(client: httpx.Client, name: str) -> None:
    for text in WRONG_NUMBERS:
        assert ask(client, "/v1/chat/completions", {name: text})["param"] == name, text
    if name not in ("top_logprobs", "max_completion_tokens"):
        for text in WRONG_NUMBERS:
            assert ask(client, "/v1/completions", {name: text})["param"] == name, text


@pytest.mark.parametrize("name", SIGNED)
def test_signed_numbers(client: httpx.Client, name: str) -> None:
    for text in (*WRONG_NUMBERS[1:], "-101"):
        assert ask(client, "/v1/chat/completions", {name: text})["param"] == name, text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "null"}, "model"),
        ({"model": "5"}, "model"),
        ({"messages": "[]"}, "messages"),
        ({"messages": '"hello"'}, "messages"),
        ({"messages": '[{"role": "user"}]'}, "messages.0.content"),
        ({"messages": '[{"role": "user", "content": "a"}, {"role": "king", "content": "b"}]'}, "messages.1.role"),
        ({"messages": '[{"content": "a"}]'}, "messages.0.role"),
        ({"messages": '[{"role": "user", "content": [{"type": "image_url"}]}]'}, "messages.0.content.0.type"),
        ({"messages": '[{"role": "user", "content": "\\ud800"}]'}, "messages.0.content"),
        ({"messages": '[{"role": "tool", "content": "a"}]'}, "messages.0.role"),
        ({"max_tokens": "1001"}, "max_tokens"),
        ({"max_completion_tokens": "1001", "max_tokens": "null"}, "max_completion_tokens"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"n": "9"}, "n"),
        ({"top_k": "-2"}, "top_k"),
        ({"top_k": "1.5"}, "top_k"),
        ({"temperature": "100.5"}, "temperature"),
        ({"top_p": "0"}, "top_p"),
        ({"stop": '""'}, "stop"),
        ({"stop": '["a", ""]'}, "stop.1"),
        ({"stop": "5"}, "stop"),
        ({"stop": json.dumps(["a"] * 17)}, "stop"),
        ({"stop_token_ids": "[999999]"}, "stop_token_ids"),
        ({"stream": '"yes"'}, "stream"),
        ({"stream": "1"}, "stream"),
        ({"stream_options": '{"include_usage": true}'}, "stream_options"),
        ({"stream": "true", "stream_options": '{"x": 1}'}, "stream_options.x"),
        ({"logit_bias": '{"5": NaN}'}, "logit_bias.5"),
        ({"logit_bias": '{"5": "1"}'}, "logit_bias.5"),
        ({"logit_bias": '{"a": 1}'}, "logit_bias.a"),
        ({"logit_bias": '{"999999": 1}'}, "logit_bias"),
        ({"logprobs": "5"}, "logprobs"),
        ({"top_logprobs": "2"}, "top_logprobs"),
        ({"logprobs": "true", "top_logprobs": "21"}, "top_logprobs"),
        ({"adapters": "5"}, "adapters"),
        ({"adapters": "[5]"}, "adapters.0"),
        ({"adapters": '{"bard": NaN}'}, "adapters.bard"),
        ({"lora": "{}"}, "lora"),
        ({"lora": '[{"id": -1, "scale": 1}]'}, "lora.0.id"),
        ({"lora": '[{"id": 0}]'}, "lora.0.scale"),
        ({"include_scalings": '"all"'}, "include_scalings"),
        ({"tools": '[{"type": "function"}]'}, "tools"),
        ({"tool_choice": '"required"'}, "tool_choice"),
        ({"response_format": '{"type": "json_object"}'}, "response_format.type"),
        ({"reasoning_effort": '"low"'}, "reasoning_effort"),
        ({"temprature": "1"}, "temprature"),
        ({"\ud800": "1"}, None),  # half a character: a name that cannot be repeated
        ({"user": "5"}, "user"),
    ],
)
def test_other_fields(client: httpx.Client, fields: dict[str, str], param: str | None) -> None:
    assert ask(client, "/v1/chat/completions", fields)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": '""'}, "prompt"),
        ({"prompt": "[]"}, "prompt"),
        ({"prompt": "5"}, "prompt"),
        ({"prompt": "[-1]"}, "prompt.0"),
        ({"prompt": "[999999]"}, "prompt"),
        ({"prompt": '["a", 5]'}, "prompt.1"),
        ({"prompt": json.dumps(["a"] * 9)}, "prompt"),
        ({"logprobs": "true"}, "logprobs"),
        ({"logprobs": "21"}, "logprobs"),
        ({"echo": "true"}, "echo"),
        ({"suffix": '"x"'}, "suffix"),
        ({"best_of": "2"}, "best_of"),
        ({"messages": "[]"}, "messages"),
    ],
)
def test_fields_of_text_completions(client: httpx.Client, fields: dict[str, str], param: str) -> None:
    assert ask(client, "/v1/completions", fields)["param"] == param


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"a": 1, "a": 2}', b"{}x", b"\0" * 50],
)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/activate_adapters",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    ],
)
def test_bodies_that_are_no_objects(client: httpx.Client, path: str, content: bytes) -> None:
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_missing_field_is_named(client: httpx.Client) -> None:
    for path, body, param in (
        ("/v1/chat/completions", {"model": MODEL}, "messages"),
        ("/v1/completions", {"model": MODEL}, "prompt"),
        ("/v1/completions", {"prompt": "a"}, "model"),
        ("/activate_adapters", {}, "adapter_names"),
        ("/activate_adapters", {"adapter_names": "bard"}, "adapter_names"),
        ("/lora-adapters", [{"id": 0}], "0.scale"),
        ("/lora-adapters", [{"id": 99, "scale": 1}], "0.id"),
        ("/lora-adapters", [{"id": 0, "scale": 1e6}], "0.scale"),
    ):
        answer = client.post(path, json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), (path, body)


def test_extreme_sampling_does_no_harm(client: httpx.Client) -> None:
    for fields in (
        {"temperature": 1e-159},
        {"temperature": 1e-5},
        {"temperature": 100},
        {"temperature": 1, "top_p": 1e-300},
        {"temperature": 1, "min_p": 1},
        {"temperature": 1, "top_k": 2**31 - 1},
        {"temperature": 1e-5, "repetition_penalty": 0.01},
        {"temperature": 1e-5, "frequency_penalty": -100, "presence_penalty": -100},
        {"temperature": 1, "logit_bias": {str(token): -100 for token in range(300)}},
        {"temperature": 1, "seed": 2**63 - 1, "n": 2},
    ):
        answer = client.post("/v1/chat/completions", json=chat("hello", max_tokens=8, **fields))
        assert answer.status_code == 200, fields
        assert answer.json()["usage"]["completion_tokens"] > 0 or answer.json()["choices"][0]["finish_reason"] == "stop"
