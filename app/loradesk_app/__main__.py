"""Composition root of the desktop application: the window first, torch later."""

from __future__ import annotations

from loradesk_app.startup_trace import StartupTrace, process_start

_TRACE = StartupTrace(process_start())

import argparse  # noqa: E402 - the trace counts what these take
import logging  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from typing import TYPE_CHECKING, TypeGuard  # noqa: E402

from loradesk_engine.errors import LoradeskError  # noqa: E402
from loradesk_engine.log.options import HELP, take_log_options  # noqa: E402
from loradesk_engine.log.trail import Trail  # noqa: E402

if TYPE_CHECKING:
    from PySide6.QtWidgets import QApplication

    from loradesk_app.main_window import MainWindow
    from loradesk_app.settings import Settings
    from loradesk_app.single_instance import OpenRequest, SingleInstance
    from loradesk_engine.commands import AdapterMode, LoadSettings

logger = logging.getLogger(__name__)

NO_DISPLAY = 3
RUNS_ALREADY = 4
WRONG_OPTION = 2
LOAD_FAILED = 1
DEMO_MODES = ("none", "lora", "xlora")
SETTLE_MS = 400  # after a load, before the picture is taken: layouts and fades have come to rest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the application; returns the exit code: 0, 3 when there is no display to show a window on, or 4 when another
    process has the window and cannot be asked; 2 for a wrong option.
    """
    try:
        log, rest = take_log_options(sys.argv[1:] if argv is None else argv)
    except LoradeskError as problem:
        print(f"loradesk: {problem}", file=sys.stderr)
        return WRONG_OPTION
    arguments = _parser().parse_args(rest)
    if Trail.active is not None:  # `loradesk demo` has begun it
        return run(arguments, Trail.active)
    with Trail("window", log.levels, stderr=log.stderr) as trail:
        return run(arguments, trail)


def run(arguments: argparse.Namespace, trail: Trail) -> int:
    """Run the application with these arguments; see `main`."""
    trace = _TRACE
    trace.on = arguments.startup_trace
    trace.mark_interpreter()
    if not has_display():
        print(
            "Loradesk: there is no display to open a window on (neither DISPLAY nor WAYLAND_DISPLAY is set).\n"
            "`loradesk chat` runs the same models in the terminal.",
            file=sys.stderr,
        )
        return NO_DISPLAY

    from loradesk_app.application import Application

    trace.mark("Qt imported")
    app = Application(sys.argv[:1])

    from loradesk_app.autosave import conversation_path
    from loradesk_app.single_instance import OpenRequest, SingleInstance

    request = OpenRequest(os.path.abspath(arguments.path) if arguments.path else "", arguments.demo or "")
    instance = SingleInstance(conversation_path(arguments.conversation))
    if arguments.screenshot and not instance.claim():
        print("Loradesk is running already: close it, or give --conversation FILE.", file=sys.stderr)
        return RUNS_ALREADY
    if not (arguments.screenshot or arguments.quit_after_paint):  # the latter keeps nothing
        code = hand_over(instance, request)
        if code is not None:
            if code == 0:
                trail.discard()
            return code

    from loradesk_app.engine_client import EngineClient
    from loradesk_app.main_window import MainWindow
    from loradesk_app.settings import Settings
    from loradesk_app.theme import Theme, app_icon

    app.setWindowIcon(app_icon())
    settings = Settings(arguments.settings)
    theme = Theme(app, settings.get("theme"), settings.get("font_scale"))
    client = EngineClient()
    window = MainWindow(settings, theme, client, arguments.conversation, trail=trail)
    ended: list[bool] = []
    window.closed_down.connect(ended.append)
    window.closed_down.connect(lambda _clean: app.quit())
    client.worker_ready.connect(lambda _event: trace.mark("worker ready"))
    client.model_loaded.connect(lambda _event: trace.mark("model loaded"))

    def painted() -> None:
        trace.mark("first paint")
        logger.info("The window is painted, %.2f s after the start of the process", trace.seconds("first paint"))
        if arguments.quit_after_paint:
            window.close()
            return
        window.start(None if request.path else first_model(request.demo, settings))
        if request.path:
            window.open_path(request.path)
        instance.listen(window.background)

    instance.requested.connect(lambda other: serve(window, other))
    window.closing_began.connect(instance.stop)
    app.file_opened.connect(window.open_path)
    watch_first_paint(window, painted)
    if arguments.screenshot:
        take_screenshot_when_idle(app, window, arguments.screenshot)
    window.show()
    trace.mark("window shown")
    close_on_signals(window)
    code = app.exec()
    instance.release()
    if ended and not ended[0]:
        # The worker is stuck in a native call that nothing can interrupt; all work is saved.
        logger.warning("The engine did not end in time: it is left behind")
        trail.stop()
        sys.stdout.flush()
        os._exit(code)
    return code


def has_display() -> bool:
    """Whether a window can be shown at all. Asked before Qt is, which would abort the process."""
    if not sys.platform.startswith("linux") or os.environ.get("QT_QPA_PLATFORM"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def hand_over(instance: SingleInstance, request: OpenRequest) -> int | None:
    """The exit code when another process has the window; None when this one is to open it."""
    from loradesk_engine.errors import BusyError

    try:
        if instance.enter(request):
            return None
    except BusyError as problem:
        from PySide6.QtWidgets import QMessageBox

        print(f"Loradesk: {problem}", file=sys.stderr)
        QMessageBox.critical(None, "Loradesk", f"{problem.problem}\n{problem.remedy}")
        return RUNS_ALREADY
    print("Loradesk is running already; its window takes over.")
    return 0


def serve(window: MainWindow, request: OpenRequest) -> None:
    """Do what another start of the application asked for."""
    from loradesk_engine.demo import demo_settings

    window.show_up()
    if request.path:
        window.open_path(request.path)
    elif is_mode(request.demo):
        window.load(demo_settings(request.demo))


def is_mode(text: str) -> TypeGuard[AdapterMode]:
    """Whether the demo pack has a mode of this name."""
    return text in DEMO_MODES


def first_model(demo: str, settings: Settings) -> LoadSettings | None:
    """What to load at start: what was asked for, the last model if the settings say so, or the demo pack."""
    from loradesk_app.loader.recent import from_json
    from loradesk_engine.demo import demo_settings

    if is_mode(demo):
        return demo_settings(demo)
    last = from_json(settings.get("last_model")) if settings.get("reload_last_model") else None
    return last or demo_settings("xlora")


def close_on_signals(window: MainWindow) -> None:
    """Ctrl+C in the terminal and a polite kill close the window as its button does: nothing is lost.

    Python runs the handlers between two of its instructions; the client's timer sees to it that there soon is one.
    """
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: window.close())


def watch_first_paint(window: MainWindow, painted: Callable[[], None]) -> None:
    """Call `painted` once, when the window's first picture has been handed to the window system."""
    from PySide6.QtCore import QEvent, QObject, QTimer

    class FirstPaint(QObject):
        def eventFilter(self, watched: QObject, event: QEvent) -> bool:
            if event.type() == QEvent.Type.Paint:
                window.removeEventFilter(self)
                # A zero timer fires after the paint event that this is, children and flush included.
                QTimer.singleShot(0, window, painted)
            return super().eventFilter(watched, event)

    window.installEventFilter(FirstPaint(window))


def take_screenshot_when_idle(app: QApplication, window: MainWindow, path: str) -> None:
    """Save a picture of the window once the first load has ended, then quit."""
    from PySide6.QtCore import QTimer

    def take(code: int) -> None:
        saved = window.grab().save(path)
        window.closed_down.connect(lambda _clean: app.exit(code if saved else LOAD_FAILED))
        window.close()

    def soon(code: int) -> None:
        QTimer.singleShot(SETTLE_MS, window, lambda: take(code))

    window.client.model_loaded.connect(lambda _event: soon(0))
    window.client.load_failed.connect(lambda _event: soon(LOAD_FAILED))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="loradesk-app", description="A mixing desk for LoRA and X-LoRA adapters, in a window.", epilog=HELP
    )
    parser.add_argument("path", nargs="?", help="a .gguf file, a model's or adapter's folder, or an ordering file")
    parser.add_argument("--demo", choices=DEMO_MODES, help="load the demo pack in this mode at start")
    parser.add_argument("--startup-trace", action="store_true", help="print how long each stage of the start takes")
    parser.add_argument("--quit-after-paint", action="store_true", help="quit when the window is painted; to measure")
    parser.add_argument("--screenshot", metavar="FILE", help="save a picture once the model is loaded, and quit")
    parser.add_argument("--settings", metavar="FILE", help="settings file to use instead of the user's")
    parser.add_argument("--conversation", metavar="FILE", help="where to keep the conversation instead of the default")
    return parser


if __name__ == "__main__":
    sys.exit(main())
