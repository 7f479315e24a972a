"""The settings: declared once, checked on the way in and out."""

from __future__ import annotations

import pytest

from loradesk_app.settings import SETTINGS, Settings


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_every_setting_has_a_description_and_a_valid_default(setting, settings):
    assert setting.description
    assert settings.get(setting.key) == setting.default
    if setting.default is not None:
        settings.set(setting.key, setting.default)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("theme", "dark"),
        ("font_scale", 120),
        ("reload_last_model", True),
        ("system_prompt", "Be brief, and kind; always.\nPlease"),
        ("input_history", ["a, b", "ü"]),
        ("sampling", {"temperature": 0.5, "seed": None}),
        ("window_geometry", b"\x00\x01\xff"),
    ],
)
def test_values_survive_the_file(key, value, settings, tmp_path):
    settings.set(key, value)
    settings.sync()
    assert Settings(tmp_path / "settings.ini").get(key) == value


@pytest.mark.parametrize(("key", "value"), [("theme", "pink"), ("font_scale", 900), ("reload_last_model", "yes")])
def test_values_out_of_range_are_refused(key, value, settings):
    with pytest.raises(ValueError, match=key):
        settings.set(key, value)


def test_a_damaged_file_counts_as_absent(tmp_path, qapp):
    path = tmp_path / "settings.ini"
    path.write_text("[General]\ntheme=pink\nfont_scale=big\nrecent_models={\nreload_last_model=perhaps\n")
    settings = Settings(path)
    assert [settings.get(key) for key in ("theme", "font_scale", "recent_models", "reload_last_model")] == [
        "system",
        100,
        [],
        False,
    ]


def test_changes_are_told_once(settings, qtbot):
    told = []
    settings.changed.connect(lambda key, value: told.append((key, value)))
    settings.set("theme", "dark")
    settings.set("theme", "dark")
    assert told == [("theme", "dark")]
