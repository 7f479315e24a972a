"""`loradesk --self-test`, which the check of the installed package relies on."""

import pytest

from loradesk_engine import cli
from loradesk_engine.cli import self_test
from loradesk_engine.errors import LoradeskError
from loradesk_engine.model.native import library


def test_all_checks_but_the_window_pass(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--self-test", "--no-window"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["files", "LoRA", "X-LoRA", "GGUF", "NF4", "server"]
    assert all(line.split()[1] == "ok" for line in lines[:-1])
    assert lines[3].endswith(f"kernels: {library.form()}")
    assert lines[-1] == "All 6 checks passed."


def test_a_check_that_fails_is_told_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> str:
        raise LoradeskError("It is broken.")

    for name in ("files", "lora", "xlora", "gguf", "bitsandbytes", "server"):
        monkeypatch.setattr(self_test, f"check_{name}", fail if name == "gguf" else lambda: "fine")
    assert cli.main(["self-test", "--no-window"]) == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "LoradeskError: It is broken." in out
    assert out.endswith("1 of 6 checks failed.\n")


def test_a_blank_picture_is_no_window() -> None:
    with pytest.raises(LoradeskError, match="no PNG"):
        self_test._picture_size(b"nothing")
