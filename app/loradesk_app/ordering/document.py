"""One ordering file that is being edited: its history, its place on disk and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtGui import QUndoCommand, QUndoStack
from shiboken6 import isValid

from loradesk_app.background import Background
from loradesk_app.ordering.analysis import Analysis, State, analyse, read_state, shown, state_of
from loradesk_app.ordering.disk import ChangedOutsideError, Stamp, content, look, write
from loradesk_app.ordering.rows import moved, unique_name, without
from loradesk_engine.errors import LoradeskError, OrderingError
from loradesk_engine.ordering import build
from loradesk_engine.ordering.finding import CheckContext, Finding, Mode
from loradesk_engine.ordering.mode import with_mode
from loradesk_engine.ordering.schema import OrderingFile, PreloadAdapter

CHECK_MS = 60
UNDO_LIMIT = 500
_TYPING = 1


class Document(QObject):
    """The model behind one tab. Each thing that a user can do to the file is one method, and one step of the history.

    Args:
        background: where files are read and written and checks run; None checks only when `analysis` is asked for.
    """

    changed = Signal()  # another state is shown
    dirty_changed = Signal(bool)
    path_changed = Signal()
    findings_changed = Signal()  # `analysis` has come up with the state
    context_changed = Signal()
    refused = Signal(object)  # LoradeskError: an edit, or a save, that could not be done
    saved = Signal(str)
    outside_change = Signal(bool)  # another program changed (True) or removed (False) the file
    about_to_act = Signal()  # pending text is to be handed in now

    def __init__(
        self,
        background: Background | None = None,
        state: State | None = None,
        *,
        path: str | None = None,
        title: str = "",
        on_disk: bytes | None = None,
        dirty: bool = False,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._background = background
        self._state = state or State(OrderingFile(""))
        self._saved = None if dirty else self._state
        self._was_dirty = dirty
        self._disk = on_disk
        self._seen: Stamp | int = 0  # of the file when it was last looked at; 0: not yet
        self._title = title
        self._analysis: Analysis | None = None
        self._context = CheckContext()
        self.path = path
        self.stack = QUndoStack(self)
        self.stack.setUndoLimit(UNDO_LIMIT)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(CHECK_MS)
        self._timer.timeout.connect(self._start_analysis)
        if background is not None:
            self._timer.start(0)

    # -- what is there ------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def ordering(self) -> OrderingFile:
        return self._state.ordering

    @property
    def on_disk(self) -> bytes | None:
        """What the file on disk holds, as far as this document knows; None when there is no file."""
        return self._disk

    @property
    def is_dirty(self) -> bool:
        return self._state is not self._saved

    @property
    def is_readable(self) -> bool:
        """Whether the text is an ordering file, so that the form may change it."""
        return self._state.draft is None

    @property
    def folder(self) -> Path | None:
        """Where relative paths in the file are looked for first."""
        return Path(self.path).absolute().parent if self.path else None

    @property
    def title(self) -> str:
        return Path(self.path).name if self.path else self._title or "Untitled"

    @property
    def context(self) -> CheckContext:
        """What the file is checked against."""
        return self._context

    @property
    def analysis(self) -> Analysis:
        """Text and findings of the current state; worked out now if that has not been done yet."""
        if self._analysis is None or not self.is_checked:
            self._analysis = analyse(self._state, self._context, self.folder)
        return self._analysis

    @property
    def is_checked(self) -> bool:
        """Whether the newest analysis is of the current state, against what it is to be checked against now."""
        analysis = self._analysis
        return analysis is not None and analysis.state is self._state and analysis.context is self._context

    @property
    def last_analysis(self) -> Analysis | None:
        """The newest that is there, which may be of a state before this one."""
        return self._analysis

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of the newest analysis; empty while there is none."""
        return self._analysis.findings if self._analysis is not None else ()

    # -- base ---------------------------------------------------------------------------------------------------

    def set_base(self, base_model_id: str) -> None:
        base_model_id = base_model_id.strip()
        if base_model_id != self.ordering.base_model_id:
            self._change("Change the base model", base_model_id=base_model_id)

    # -- order --------------------------------------------------------------------------------------------------

    def add_name(self, name: str = "", row: int | None = None) -> int:
        """Put a name into `order`, at the end or before a row; returns its row. Without a name, it gets a new one."""
        names = list(self.ordering.order or ())
        name = name.strip() or unique_name("adapter", names)
        row = len(names) if row is None else row
        self._change(f"Add {name} to the order", order=[*names[:row], name, *names[row:]])
        return row

    def change_name(self, row: int, name: str) -> None:
        """Write another name into a row of `order`; the preload adapters keep theirs."""
        names = list(self.ordering.order or ())
        name = name.strip()
        if name and names[row] != name:
            label = f"Rename {names[row]} to {name}" if names[row] else f"Name an adapter {name}"
            names[row] = name
            self._change(label, order=names)

    def move_names(self, rows: Collection[int], target: int) -> list[int]:
        """Move rows of `order` before the row that is at `target` now; returns where they are then."""
        names = list(self.ordering.order or ())
        result, places = moved(names, rows, target)
        if result != names:
            self._change(_label("Move", [names[row] for row in sorted(rows)]), order=result)
        return places

    def remove_names(self, rows: Collection[int]) -> None:
        """Take rows out of `order`; the last one takes the key with it."""
        names = list(self.ordering.order or ())
        if rows:
            label = _label("Remove", [names[row] for row in sorted(rows)]) + " from the order"
            self._change(label, order=without(names, rows) or None)

    def set_names(self, names: Sequence[str]) -> None:
        """Replace the whole `order`."""
        self._change("Replace the order", order=list(names) or None)

    # -- preload adapters ---------------------------------------------------------------------------------------

    def add_preload(self, name: str, adapter_model_id: str, row: int | None = None) -> int:
        """Add a preload adapter, with a free name if this one is taken; returns its row."""
        adapters = list(self.ordering.preload_adapters or ())
        name = unique_name(name.strip() or "adapter", [adapter.name for adapter in adapters])
        row = len(adapters) if row is None else row
        entry = PreloadAdapter(name, adapter_model_id.strip())
        self._change(f"Preload {name}", preload_adapters=[*adapters[:row], entry, *adapters[row:]])
        return row

    def put_preloads(self, adapters: Sequence[PreloadAdapter]) -> None:
        """Preload these adapters, in one step: those of a name that is there take its place, the others come last."""
        new = {adapter.name: adapter for adapter in adapters}
        there = self.ordering.preload_adapters or ()
        kept = [new.pop(adapter.name, adapter) for adapter in there]
        label = _label("Preload", [adapter.name for adapter in adapters])
        self._push(label, lambda: build.preload(self.ordering, [*kept, *new.values()], replace=True))

    def rename_preload(self, row: int, name: str) -> None:
        """Rename a preload adapter; `order` refers to it by name and follows, if no other has the old name."""
        adapters = list(self.ordering.preload_adapters or ())
        old, name = adapters[row], name.strip()
        if not name or name == old.name:
            return
        adapters[row] = PreloadAdapter(name, old.adapter_model_id)
        changes: dict[str, Any] = {"preload_adapters": adapters}
        order = self.ordering.order or ()
        if old.name in order and name not in order and all(adapter.name != old.name for adapter in adapters):
            changes["order"] = [name if entry == old.name else entry for entry in order]
        self._change(f"Rename {old.name} to {name}", **changes)

    def change_preload_id(self, row: int, adapter_model_id: str) -> None:
        adapters = list(self.ordering.preload_adapters or ())
        old, adapter_model_id = adapters[row], adapter_model_id.strip()
        if adapter_model_id != old.adapter_model_id:
            adapters[row] = PreloadAdapter(old.name, adapter_model_id)
            self._change(f"Change where {old.name} is", preload_adapters=adapters)

    def move_preloads(self, rows: Collection[int], target: int) -> list[int]:
        """Move preload adapters; as `move_names`."""
        adapters = list(self.ordering.preload_adapters or ())
        result, places = moved(adapters, rows, target)
        if result != adapters:
            self._change(_label("Move", [adapters[row].name for row in sorted(rows)]), preload_adapters=result)
        return places

    def remove_preloads(self, rows: Collection[int]) -> None:
        """Remove preload adapters; the last one takes the key with it."""
        adapters = list(self.ordering.preload_adapters or ())
        if rows:
            label = _label("Remove", [adapters[row].name for row in sorted(rows)]) + " from the preloads"
            self._change(label, preload_adapters=without(adapters, rows) or None)

    # -- layers -------------------------------------------------------------------------------------------------

    def regenerate_layers(self, config: Mapping[str, Any], modules: Collection[str]) -> None:
        """Make `layers` anew for these modules of a base model."""
        self._push("Regenerate the layers", lambda: build.regenerate(self.ordering, config, modules))

    def set_layer_index(self, path: str, index: int) -> None:
        layers = dict(self.ordering.layers or {})
        if path in layers and layers[path] != index:
            layers[path] = index
            self._change(f"Change the index of {path}", layers=layers)

    def rename_layer(self, path: str, new: str) -> None:
        """Give a layer another module path, at its place."""
        layers, new = self.ordering.layers or {}, new.strip()
        if not new or new == path or path not in layers:
            return
        if new in layers:
            self.refused.emit(
                OrderingError(f"There already is a layer {new}.", field="layers", remedy="Use each path once.")
            )
            return
        renamed = {new if key == path else key: index for key, index in layers.items()}
        self._change(f"Rename the layer {path}", layers=renamed)

    def remove_layers(self, paths: Collection[str]) -> None:
        """Take layers out; the last one takes the key with it. The indices of the others stay."""
        taken = set(paths)
        layers = {path: index for path, index in (self.ordering.layers or {}).items() if path not in taken}
        if taken:
            self._change(_label("Remove the layer", sorted(taken)), layers=layers or None)

    # -- findings -----------------------------------------------------------------------------------------------

    def fix(self, finding: Finding) -> None:
        """Do what a finding proposes."""
        if finding.fix is not None:
            fix = finding.fix
            self._push(fix.title, lambda: fix.apply(self.ordering))

    def fix_all(self) -> None:
        """Do all that the findings propose, in one step."""
        self.about_to_act.emit()
        if not self.is_readable:
            return
        state, context = self._state, with_mode(self._context, self.ordering)

        def done(ordering: OrderingFile) -> None:
            if isValid(self) and self._state is state and ordering != state.ordering:
                self._do("Fix all", State(ordering))

        if self._background is None:
            done(build.fix(state.ordering, context)[0])
        else:  # each fix is followed by a new check, which takes long in a large file
            self._run(lambda: build.fix(state.ordering, context)[0], done, self._refuse)

    # -- text ---------------------------------------------------------------------------------------------------

    def edit_text(self, text: str, run: int = 0) -> None:
        """Take over a text from the JSON view, readable or not. Texts of the same typing `run` are one step."""
        before = self._state.draft if self._state.draft is not None else self.ordering.dumps()
        if text == shown(before):
            return
        if "\r\n" in before:
            text = text.replace("\n", "\r\n")
        if before.startswith("\ufeff"):
            text = "\ufeff" + text
        self._do("Edit the text", state_of(text, self.path or "ordering file", self.ordering), run)

    def discard_text(self) -> None:
        """Go back from a text that cannot be read to the file as it was before it."""
        if self._state.draft is not None:
            self._do("Discard the text", State(self.ordering))

    # -- history ------------------------------------------------------------------------------------------------

    def undo(self) -> None:
        self.about_to_act.emit()
        self.stack.undo()

    def redo(self) -> None:
        self.about_to_act.emit()
        self.stack.redo()

    # -- disk ---------------------------------------------------------------------------------------------------

    def save(self, path: str | None = None, *, force: bool = False) -> None:
        """Write the file; `saved` or `refused` follows. A file that was changed elsewhere is only written by force."""
        self.about_to_act.emit()
        target, state = path or self.path, self._state
        assert target is not None, "an untitled document needs a path"
        if state.problem is not None:
            problem = OrderingError(
                f"A text with an error is not saved. {state.problem.problem}",
                file=self.path,
                field=state.problem.field,
                remedy="Correct it, or discard the text.",
            )
            self.refused.emit(problem)
            return
        known = self._disk if target == self.path and not force else None

        def done(data: bytes) -> None:
            if not isValid(self):
                return
            self._disk, self._saved = data, state
            self._set_path(target)
            self._tell_dirty()
            self.saved.emit(target)

        self._run(lambda: write(state.ordering, target, known), done, self._note_write_problem)

    def reload(self, label: str = "Reload") -> None:
        """Take the file from disk, as a step that can be undone."""
        path = self.path
        if path is None:
            return

        def done(result: tuple[bytes, State]) -> None:
            if not isValid(self):
                return
            self.about_to_act.emit()
            self._disk, self._saved = result
            self._do(label, result[1])
            self._tell_dirty()

        self._run(lambda: read_state(path), done, self._refuse)

    def keep_mine(self) -> None:
        """The file was changed elsewhere, and the next save may overwrite that."""
        self._saved = self._disk = None  # nothing to compare with, so a save that follows at once goes through
        self._tell_dirty()
        path = self.path
        if path is not None:
            self._run(lambda: content(path), self._note_disk, self._refuse)

    def look_at_disk(self) -> None:
        """See whether another program changed the file; `outside_change` tells."""
        path = self.path
        if path is None or self._background is None:
            return

        seen = self._seen

        def done(result: tuple[Stamp, bytes | None]) -> None:
            if not isValid(self) or path != self.path or self._disk is None:
                return
            stamp, data = result
            if stamp != self._seen and (stamp is None or stamp != seen):
                self._seen = stamp
                if data != self._disk:
                    self.outside_change.emit(stamp is not None)

        # The same stamp as last time: nothing has to be read, however often the folder changes.
        self._run(lambda: look(path, seen), done, lambda _error: None)

    # -- checking -----------------------------------------------------------------------------------------------

    def set_context(self, **changes: Any) -> None:
        """Check against something else: fields of `CheckContext`."""
        context = replace(self._context, **changes)
        if context != self._context:
            self._context = context
            self._start_later()
            self.context_changed.emit()

    def set_mode(self, mode: Mode | None) -> None:
        """Check as a file for LoRA or X-LoRA; None goes by what is in it."""
        self.set_context(mode=mode)

    # ------------------------------------------------------------------------------------------------------------

    def _change(self, label: str, **changes: Any) -> None:
        self._push(label, lambda: self.ordering.replace(**changes))

    def _push(self, label: str, make: Callable[[], OrderingFile]) -> None:
        """One step of the form. While the text is not readable there is nothing that a form could change."""
        if not self.is_readable:
            return
        try:
            ordering = make()
        except LoradeskError as problem:
            self.refused.emit(problem)
            return
        if ordering != self.ordering:
            self._do(label, State(ordering))

    def _do(self, label: str, state: State, run: int = 0) -> None:
        self.stack.push(_Step(self, label, self._state, state, run))

    def show_state(self, state: State) -> None:
        """For the steps of the history only."""
        self._state = state
        self._start_later()
        self.changed.emit()
        self._tell_dirty()

    def _tell_dirty(self) -> None:
        if self._was_dirty != self.is_dirty:
            self._was_dirty = self.is_dirty
            self.dirty_changed.emit(self.is_dirty)

    def _set_path(self, path: str) -> None:
        if path != self.path:
            self.path = path
            self._start_later()  # relative paths mean something else there
            self.path_changed.emit()

    def _note_disk(self, data: bytes | None) -> None:
        if isValid(self):
            self._disk = data

    def _note_write_problem(self, error: Exception) -> None:
        if isinstance(error, ChangedOutsideError):
            if isValid(self):
                self.outside_change.emit(True)
        else:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        if isValid(self):
            self.refused.emit(error)

    def _run(self, work: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]) -> None:
        assert self._background is not None, "a document without a background stays in memory"
        self._background.run(work, done, failed)

    def _start_later(self) -> None:
        if self._background is not None:
            self._timer.start()

    def _start_analysis(self) -> None:
        state, context, folder = self._state, self._context, self.folder
        before = self._analysis
        known = before.preloads if before is not None else {}
        self._run(lambda: analyse(state, context, folder, known), self._take_analysis, self._refuse)

    def _take_analysis(self, analysis: Analysis) -> None:
        if isValid(self) and analysis.state is self._state:
            self._analysis = analysis
            self.findings_changed.emit()


class _Step(QUndoCommand):
    """From one state to another; consecutive typing becomes one step."""

    def __init__(self, document: Document, label: str, before: State, after: State, run: int) -> None:
        super().__init__(label)
        self._document, self._before, self._after, self._typing = document, before, after, run

    def redo(self) -> None:
        self._document.show_state(self._after)

    def undo(self) -> None:
        self._document.show_state(self._before)

    def id(self) -> int:
        return _TYPING if self._typing else -1

    def mergeWith(self, other: QUndoCommand) -> bool:
        if not isinstance(other, _Step) or other._typing != self._typing:
            return False
        self._after = other._after
        return True


def _label(verb: str, names: Sequence[str]) -> str:
    return f"{verb} {names[0]}" if len(names) == 1 else f"{verb} {len(names):,} entries"
