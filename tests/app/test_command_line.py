"""`loradesk`: what is a subcommand and what is for the window."""

from __future__ import annotations

import pytest

from loradesk_engine import cli


@pytest.mark.parametrize("argument", ["chat", "serve", "self-test", "--help", "--version", "nonsense"])
def test_words_are_subcommands(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat").mkdir()
    assert not cli.is_for_window(argument)


@pytest.mark.parametrize("argument", ["--demo", "gone.gguf", "./chat", "/a/folder", "mine.json", "here"])
def test_options_and_paths_are_for_the_window(argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert cli.is_for_window(argument)


def test_a_path_opens_the_window_with_all_its_options(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "open_window", lambda arguments: seen.append(arguments) or 0)
    assert cli.main(["model.gguf", "--startup-trace"]) == 0
    assert seen == [["model.gguf", "--startup-trace"]]


def test_a_word_that_is_neither_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        cli.main(["cat"])
    assert refusal.value.code == 2
    assert "invalid choice" in capsys.readouterr().err
