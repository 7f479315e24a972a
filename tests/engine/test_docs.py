"""What the documents show runs as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loradesk_engine.cli import build_parser, main
from loradesk_engine.log.options import take_log_options

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "docs/guide.md", "docs/python.md"]
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
LINKED = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
TERMS = ["row", "guess", "scaling row", "chunk", "segment", "column", "pass", "step", "mixture", "delta", "shift"]


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


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text):
        if target.startswith("https://"):
            continue
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_lists_each_page() -> None:
    listed = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    for page in DOCS:
        if page != "docs/README.md":
            assert listed.count(page.removeprefix("docs/")) == 1, page


def paths_in(text: str) -> list[str]:
    """Paths from the project's folder that a text names between backticks, outside blocks of code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)+|[\w-]+\.(?:md|toml|txt))`", text)
    return [path for path in named if not path.startswith(".venv/")]


def test_files_of_the_contributors_page_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = paths_in(text)
    assert len(paths) > 50
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "docs" / path).exists(), path


def test_each_usual_change_names_code_and_tests() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Where does a change go?")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    for change, code, tests in rows:
        assert paths_in(code), change
        assert paths_in(tests), change
        assert all(path.startswith("tests/") and (ROOT / path).is_file() for path in paths_in(tests)), change


def test_the_glossary_defines_each_term() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    defined = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", text, re.MULTILINE))
    assert set(TERMS) <= set(defined)
    assert all(len(defined[term].split()) > 8 for term in TERMS)


def test_the_picture_of_the_architecture_names_what_is_there() -> None:
    text = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    shown = " ".join(
        element.text or "" for element in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}text")
    )
    names = re.findall(r"[\w/]+\.py|\b\w+/(?:\w+/)*(?!\w)", shown)
    assert len(names) > 20
    for name in names:
        found = [path for part in ("engine", "app") for path in (ROOT / part).rglob(f"*/{name.rstrip('/')}")]
        assert found, name


@pytest.mark.parametrize("page", ["docs/guide.md", "docs/ordering.md"])
def test_commands_on_the_page_are_understood(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("    loradesk ")]
    assert len(lines) >= 6
    for line in lines:
        _log, arguments = take_log_options(shlex.split(line)[1:])
        if arguments:  # none: the window
            assert callable(build_parser().parse_args(arguments).handler)


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
