"""The text that a user may attach to a report of a problem; nothing of it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from loradesk_app.about_dialog import app_version
from loradesk_app.settings import SETTINGS
from loradesk_engine.log.entry import Entry
from loradesk_engine.log.redaction import without_secrets

LAST_ENTRIES = 1000
VERSIONS, CHOICES, LOG = "versions", "settings", "log"
PARTS = (
    (VERSIONS, "Versions, processor, GPU, memory"),
    (CHOICES, "Settings, without keys and without what you wrote"),
    (LOG, f"Log, the last {LAST_ENTRIES:,} entries at most"),
)


def report_settings(get: Callable[[str], Any]) -> dict[str, Any]:
    """The settings that say how Loradesk is used, and nothing of what is written in it."""
    found = {setting.key: get(setting.key) for setting in SETTINGS if setting.reported}
    sampling = {name: value for name, value in get("sampling").items() if isinstance(value, int | float)}
    return found | {"sampling": sampling}  # a text in it, as of `stop`, is the user's


def report_text(
    parts: Sequence[str], facts: Mapping[str, str], settings: Mapping[str, Any], entries: Sequence[Entry]
) -> str:
    """The report.

    Args:
        parts: which of `PARTS` are in it.
        facts: versions and devices, by name.
        entries: of the log; the last ones are taken.
    """
    sections = [f"Loradesk {app_version()}, report of {datetime.now():%Y-%m-%d %H:%M}"]
    if VERSIONS in parts:
        sections.append("\n".join(["== Versions", *(f"{name}: {fact}" for name, fact in facts.items())]))
    if CHOICES in parts:
        lines = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())
        sections.append("\n".join(["== Settings", *lines]))
    if LOG in parts:
        sections.append("\n".join(["== Log", *(entry.text for entry in entries[-LAST_ENTRIES:])]))
    return without_home(without_secrets("\n\n".join(sections))) + "\n"


def without_home(text: str) -> str:
    """The text with the path of the user's home folder, which often holds a name, replaced by `~`."""
    home = str(Path.home())
    if len(home) < 3:  # the root, on some servers
        return text
    return text.replace(home, "~").replace(home.replace("\\", "/"), "~").replace(home.replace("\\", "\\\\"), "~")
