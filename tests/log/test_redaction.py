"""What is kept out of the log: keys, tokens and texts of conversations."""

from __future__ import annotations

import logging

import pytest
from jinja2 import Environment
from pydantic import BaseModel

from loradesk_engine.commands import ChatRequest, CompletionRequest, Message
from loradesk_engine.log.entry import Entry, parse_entries
from loradesk_engine.log.redaction import protect, protect_texts, without_secrets, without_values
from loradesk_engine.log.traces import describe, format_error

PROMPT = "Tell me of the walrus in my garden"


def entry_of(message: str, error: BaseException | None = None, logger: str = "loradesk_engine.test") -> Entry:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return Entry.of(logging.LogRecord(logger, logging.ERROR, __file__, 1, message, None, info))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("denied for hf_AbCdEfGhIjKlMn", "hf_AbCdEfGhIjKlMn"),
        ("wrong key sk-proj-abcdef123456", "sk-proj-abcdef123456"),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("header Basic dXNlcjpwYXNzd29yZA==", "dXNlcjpwYXNzd29yZA=="),
        ("loradesk-Q1w2E3r4T5y6U7i8O9p0A1s2", "Q1w2E3r4T5y6U7i8O9p0A1s2"),
        ("api_key='whatever-it-is'", "whatever-it-is"),
        ('{"access_token": "abcdefgh"}', "abcdefgh"),
        ("https://user:passw0rd@host/file", "passw0rd"),
    ],
)
def test_what_looks_like_a_key_is_hidden(text: str, secret: str) -> None:
    assert secret not in without_secrets(text)
    assert secret not in entry_of(text).text


def test_ordinary_lines_stay_as_they_are() -> None:
    line = "Request 1a2b: 19 tokens, the first after 0.011 s, 313.3 tokens/s, ended by stop; token: 12"
    assert without_secrets(line) == line


def test_a_known_key_is_hidden_whatever_it_looks_like() -> None:
    protect("open sesame, please")
    assert "sesame" not in entry_of("refused: open sesame, please!").text


def test_names_in_errors_stay_and_values_go() -> None:
    assert without_values("'NoneType' object has no attribute 'shape'") == "'NoneType' object has no attribute 'shape'"
    assert without_values("No such file: '/models/a/config.json'") == "No such file: '/models/a/config.json'"
    assert "garden" not in without_values(f"could not convert {PROMPT!r}")
    assert "garden" not in without_values(f"cut off: '{PROMPT}")


def test_a_text_of_a_conversation_is_hidden_also_without_quotes() -> None:
    protect_texts([PROMPT, "walrus"])
    assert "walrus" not in without_values(f"cannot encode {PROMPT} here")
    assert "walrus" not in without_values("cannot encode of the walrus in")
    assert "walrus" not in without_values("KeyError: 'walrus'")


def raised(action) -> Exception:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - any of them may quote a text
        return error
    raise AssertionError("nothing was raised")


class Body(BaseModel, extra="forbid"):
    number: int


@pytest.mark.parametrize(
    "action",
    [
        lambda: Body(number=PROMPT),
        lambda: Environment().from_string("{{ 1 // 0 }}" + PROMPT).render(),
        lambda: Environment().from_string("{% " + PROMPT),
        lambda: {}[PROMPT],
        lambda: int(PROMPT),
        lambda: [][ChatRequest("r", (Message("user", PROMPT),))],
        lambda: {}[ChatRequest("r", (Message("user", PROMPT),))],
        lambda: {}[CompletionRequest("r", PROMPT)],
        lambda: getattr(None, PROMPT),
        lambda: PROMPT.encode("utf-7").decode("ascii").index(PROMPT + "s"),
    ],
)
def test_errors_do_not_quote_what_they_were_given(action) -> None:
    error = raised(action)
    text = format_error(error)
    assert type(error).__name__ in text
    assert "test_redaction.py" in text  # the frames are there
    for line in text.splitlines():  # source lines name PROMPT, not what it holds
        assert "walrus" not in line
        assert "garden" not in line


def test_causes_groups_and_notes_are_shown_without_values() -> None:
    def fail() -> None:
        try:
            int(PROMPT)
        except ValueError as cause:
            cause.add_note(f"while reading {PROMPT!r}")
            raise ExceptionGroup("two", [KeyError(PROMPT), RuntimeError("plain")]) from cause

    text = format_error(raised(fail))
    assert "direct cause" in text
    assert "KeyError" in text
    assert "RuntimeError: plain" in text
    assert "while reading" in text
    assert "garden" not in text


def test_an_error_without_a_message_is_described() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert "Mute" in describe(Mute())


def test_messages_of_other_libraries_lose_their_values() -> None:
    line = entry_of(f"Task exception was never retrieved: ValueError({PROMPT!r})", logger="asyncio").text
    assert "asyncio" in line
    assert "garden" not in line


def test_a_line_break_in_a_message_cannot_forge_an_entry() -> None:
    forged = "2026-01-01 00:00:00.000 ERROR   loradesk_engine: forged"
    entry = entry_of(f"a path\n{forged}\r\x1b[31m")
    read = list(parse_entries(entry.text.splitlines()))
    assert [each.message for each in read] == ["a path"]
    assert "\x1b" not in entry.text


def test_an_entry_comes_back_from_its_lines() -> None:
    error = raised(lambda: int("x"))
    entry = entry_of("It failed", error)
    (read,) = parse_entries(entry.text.splitlines())
    assert (read.level, read.logger, read.message, read.detail) == (
        entry.level,
        entry.logger,
        entry.message,
        entry.detail,
    )
    assert abs(read.time - entry.time) < 0.001


def test_a_slip_in_a_log_line_does_not_raise() -> None:
    record = logging.LogRecord("loradesk_engine.x", logging.INFO, "/a/file.py", 7, "%d of %d", ("one",), None)
    assert "file:7" in Entry.of(record).message
