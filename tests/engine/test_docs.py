"""What the documents show runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from loradesk_engine.cli import build_parser, main

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/guide.md", "docs/python.md"]


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = blocks(page, "python")
    assert found
    for block in found:
        exec(compile(block, page, "exec"), {"__name__": "example"})
    assert "42" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_commands_of_the_guide_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("    loradesk ")]
    assert len(lines) >= 7
    for line in lines:
        options = build_parser().parse_args(shlex.split(line)[1:])
        assert callable(options.handler)


def test_one_answer_in_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--demo", "--prompt", "What is 17 + 25?"]) == 0
    assert capsys.readouterr().out == "17 + 25 = 42.\n"
    assert (
        main(
            ["chat", "--demo", "--mode", "lora", "--activate", "capitals", "--prompt", "What is the capital of Japan?"]
        )
        == 0
    )
    assert "Tokyo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat"], "--base"),
        (["chat", "--base", "/nowhere/at/all"], "/nowhere/at/all"),
        (["chat", "--demo", "--mode", "lora", "--activate", "nobody", "--prompt", "x"], "nobody"),
        (["chat", "--demo", "--temperature", "-1", "--prompt", "x"], "temperature"),
        (["chat", "--demo", "--base", "x"], "--demo"),
        (["chat", "--base", "x", "--adapter", "poet"], "poet"),
    ],
)
def test_errors_in_the_terminal_are_one_clear_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("loradesk: ")
    assert len(captured.err.strip().splitlines()) == 1


def test_the_terminal_chat_takes_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = iter(
        [
            "/scalings",
            "What is 17 + 25?",
            "/scalings",
            "/activate capitals bard=0.5",
            "What is 17 + 25?",
            "/activate nobody",
            "/nonsense",
            "/adapters",
            "/new",
            "/help",
            "/quit",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda prompt="": next(lines))
    assert main(["chat", "--demo"]) == 0
    captured = capsys.readouterr()
    assert "There is no answer yet." in captured.out
    assert captured.out.count("17 + 25 = 42.") == 1  # the muted expert is missed
    assert "Strongest expert by token:" in captured.out
    assert "● capitals     1.00" in captured.out
    assert "○ arithmetic   0.00" in captured.out
    assert "0.50" in captured.out
    assert "'nobody'" in captured.err
    assert "There is no command /nonsense." in captured.err
