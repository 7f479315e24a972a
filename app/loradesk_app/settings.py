"""What the user can set, each thing declared once with its type, default and description."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PySide6.QtCore import QByteArray, QObject, QSettings, QStandardPaths, Signal


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: name in the file and for `Settings.get`.
        kind: `bool`, `int`, `float`, `str`, `json` (lists and objects) or `bytes`.
        default: what holds until the user says otherwise.
        label, description: shown in the preferences; settings without a label are kept but not shown.
        choices: the values a `str` may take, with what the user reads.
        low, high: range of a number.
        reported: whether it is in a report of a problem; never what the user writes, opens or names.
    """

    key: str
    kind: str
    default: Any
    description: str
    label: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    low: float = 0
    high: float = 0
    reported: bool = False


THEMES = (("system", "Like the system"), ("light", "Light"), ("dark", "Dark"))
SEND_KEYS = (("enter", "Enter"), ("ctrl+enter", "Ctrl+Enter"))

SETTINGS = (
    Setting("theme", "str", "system", "Light or dark colours.", "Theme", THEMES, reported=True),
    Setting("font_scale", "int", 100, "Size of all text, in percent.", "Text size", low=80, high=180, reported=True),
    Setting(
        "reload_last_model",
        "bool",
        False,
        "At start, load the model that was loaded last instead of the demo.",
        "Load the last model at start",
        reported=True,
    ),
    Setting(
        "send_key",
        "str",
        "enter",
        "The key that sends a message; the other one starts a new line.",
        "Send messages with",
        SEND_KEYS,
        reported=True,
    ),
    Setting(
        "restore_conversation",
        "bool",
        True,
        "At start, bring back the conversation that was open.",
        "Restore the conversation",
        reported=True,
    ),
    Setting("recent_models", "json", [], "Models loaded lately, newest first; access tokens are never kept."),
    Setting("last_model", "json", None, "What was loaded last."),
    Setting("sampling", "json", {}, "How the next token is drawn: fields of Sampling that differ from its defaults."),
    Setting("preset", "str", "Precise", "Name of the sampling preset in use; empty when changed by hand."),
    Setting("system_prompt", "str", "", "Instructions put before every conversation."),
    Setting("input_history", "json", [], "Messages sent, newest last, for the Up key."),
    Setting("ordering_recent", "json", [], "Ordering files opened lately, newest first."),
    Setting("ordering_window", "bytes", b"", "Where the editor of ordering files was."),
    Setting("server_port", "int", 8357, "Port of the local server.", low=1024, high=65535, reported=True),
    Setting("window_geometry", "bytes", b"", "Where the window was."),
    Setting("main_splitter", "bytes", b"", "How chat and side panel share the width."),
    Setting("side_splitter", "bytes", b"", "How adapters and scalings share the height."),
    Setting("side_shown", "bool", True, "Whether the side panel is shown.", reported=True),
)

_BY_KEY = {setting.key: setting for setting in SETTINGS}


class Settings(QObject):
    """The settings of one user, kept in an INI file.

    A value in the file that does not fit its declaration counts as absent: a damaged file never stops the start.
    """

    changed = Signal(str, object)

    def __init__(self, path: str | Path | None = None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        if path is None:
            folder = QStandardPaths.writableLocation(QStandardPaths.StandardLocation.AppConfigLocation)
            path = Path(folder) / "settings.ini"
        self._store = QSettings(str(path), QSettings.Format.IniFormat)

    def get(self, key: str) -> Any:
        """The value of a setting, or its default."""
        setting = _BY_KEY[key]
        raw = self._store.value(key)
        if raw is None:
            return setting.default
        try:
            value = _decode(setting, raw)
        except (TypeError, ValueError, KeyError):
            return setting.default
        return value if _fits(setting, value) else setting.default

    def set(self, key: str, value: Any) -> None:
        """Keep a value; `changed` tells when it differs from before.

        Raises:
            ValueError: the value is not one that the declaration allows.
        """
        setting = _BY_KEY[key]
        if not _fits(setting, value):
            raise ValueError(f"{value!r} does not fit the setting {key}")
        if self.get(key) == value:
            return
        self._store.setValue(key, _encode(setting, value))
        self.changed.emit(key, value)

    def sync(self) -> None:
        """Write to disk now instead of when Qt sees fit."""
        self._store.sync()


def _encode(setting: Setting, value: Any) -> Any:
    if setting.kind == "bytes":
        return QByteArray(value)
    return json.dumps(value, ensure_ascii=False) if setting.kind == "json" else value


def _decode(setting: Setting, raw: Any) -> Any:
    match setting.kind:
        case "bool":
            return raw if isinstance(raw, bool) else {"true": True, "false": False}[str(raw).lower()]
        case "int":
            return int(raw)
        case "float":
            return float(raw)
        case "json":
            # An INI value without quotes that holds commas comes back as a list of strings.
            return json.loads(", ".join(raw) if isinstance(raw, list) else raw)
        case "bytes":
            return bytes(raw.data()) if isinstance(raw, QByteArray) else bytes(raw)
        case _:
            return ", ".join(raw) if isinstance(raw, list) else str(raw)


def _fits(setting: Setting, value: Any) -> bool:
    match setting.kind:
        case "bool":
            return isinstance(value, bool)
        case "int" | "float":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and (setting.low == setting.high or setting.low <= value <= setting.high)
        case "str":
            return isinstance(value, str) and (not setting.choices or value in {key for key, _ in setting.choices})
        case "bytes":
            return isinstance(value, bytes)
        case _:
            with contextlib.suppress(TypeError, ValueError):
                json.dumps(value)
                return setting.default is None or isinstance(value, type(setting.default))
            return False
