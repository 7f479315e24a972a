"""Every error Loradesk raises on purpose: what is wrong, in which file and field, and what to do about it.

Plain data: no torch here, so that the window, the ordering-file editor and the terminal can show these errors without
    loading the engine.
"""

from __future__ import annotations

from os import PathLike, fspath

MAX_CHARACTERS = 2000  # of a part of a message: what a file holds may be quoted in it
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class LoradeskError(Exception):
    """Base of the hierarchy.

    Args:
        problem: one sentence, what is wrong.
        file: the file (or hub id) it was found in.
        field: the key, tensor or line inside that file.
        remedy: one sentence, what the user can do.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | PathLike[str] | None = None,
        field: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = _shown(problem)
        self.file = _shown(fspath(file)) if file is not None else None
        self.field = None if field is None else _shown(field, 300)
        self.remedy = None if remedy is None else _shown(remedy)
        super().__init__(str(self))

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.file, self.field) if part)
        text = f"{where}: {self.problem}" if where else self.problem
        return f"{text} {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.problem, self.file, self.field, self.remedy))


def _shown(text: str, limit: int = MAX_CHARACTERS) -> str:
    """A text that may come from a file, of a length that can be read and without a terminal's control characters."""
    cut = text if len(text) <= limit else f"{text[: limit - 20]} … {text[-17:]}"
    return cut.translate(_CONTROLS)


def _rebuild(
    kind: type[LoradeskError], problem: str, file: str | None, field: str | None, remedy: str | None
) -> LoradeskError:
    return kind(problem, file=file, field=field, remedy=remedy)


class FileFormatError(LoradeskError):
    """A file is missing, truncated or not what its format says."""


class ConfigError(LoradeskError):
    """config.json (or a tokenizer's configuration) is wrong or describes something unsupported."""


class SettingError(LoradeskError):
    """An environment variable asks for what cannot be done here."""


class CheckpointError(LoradeskError):
    """Weights do not fit the model: missing, unexpected or of another shape."""


class AdapterError(LoradeskError):
    """A LoRA or X-LoRA adapter cannot be used: unsupported option, wrong base, wrong shape."""


class OrderingError(LoradeskError):
    """An ordering file is malformed or contradicts the model and adapters it describes."""


class TemplateError(LoradeskError):
    """A chat template failed, grew too large or took too long."""


class HubError(LoradeskError):
    """The model hub could not be reached or refused."""


class RequestError(LoradeskError):
    """A request's parameters are out of range, or it does not fit the model."""


class ContextLengthError(RequestError):
    """A prompt does not fit into the context."""


class NoModelError(RequestError):
    """There is no model to answer with, or it went away under a request."""


class BusyError(LoradeskError):
    """It cannot be done while requests run; it can be when they have ended."""


class MemoryShortageError(LoradeskError):
    """A load needs more memory than is free."""


class Cancelled(LoradeskError):
    """The user stopped a load or a generation; not a failure."""

    def __init__(self, problem: str = "Cancelled.", **where: str | None) -> None:
        super().__init__(problem, **where)
