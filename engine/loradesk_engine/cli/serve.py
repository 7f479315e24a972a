"""`loradesk serve`: a model behind the HTTP interfaces of OpenAI, mistral.rs, vLLM and llama.cpp."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loradesk_engine.activation import none_active
from loradesk_engine.cli.estimate import print_estimate, warn_if_short
from loradesk_engine.cli.model_options import add_model_options, load_settings
from loradesk_engine.commands import CancelLoad, Load, LoadSettings
from loradesk_engine.errors import LoradeskError

if TYPE_CHECKING:
    from loradesk_engine.events import ModelInfo
    from loradesk_engine.serving.http import RequestRecord, ServerOptions
    from loradesk_engine.serving.worker import EngineWorker

PORT = 8357


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve",
        help="answer over HTTP, as OpenAI's API does",
        description="Serve a model over HTTP. Only this machine can connect, and a key is needed, unless you say "
        "otherwise.",
    )
    add_model_options(parser)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    server.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default {PORT})")
    server.add_argument("--allow-remote", action="store_true", help="allow --host to be reached by other machines")
    server.add_argument("--api-key", metavar="KEY", help="use this key instead of the one that is kept for you")
    server.add_argument("--no-key", action="store_true", help="ask for no key (loopback only)")
    server.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="accept this name in the Host header"
    )
    server.add_argument(
        "--allow-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let this web page call, as in https://example.org",
    )
    server.add_argument(
        "--adapter-root",
        metavar="FOLDER",
        action="append",
        default=[],
        help="let clients load adapters from below this folder",
    )
    server.add_argument("--max-tokens", type=int, default=4096, help="most completion tokens of a request")
    server.add_argument("--max-requests", type=int, default=64, help="answers that may run or wait at the same time")
    server.add_argument("--max-body-bytes", type=int, default=2**20, help="largest body of a request")
    server.add_argument("--request-seconds", type=float, default=600.0, help="longest time for an answer")
    server.add_argument("--quiet", action="store_true", help="print no line for each request")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the subcommand; returns the exit code."""
    settings = load_settings(options)
    if options.estimate:
        return print_estimate(settings)
    warn_if_short(settings)
    from loradesk_engine.serving.http import HttpServer
    from loradesk_engine.serving.worker import EngineWorker

    chosen, key_note = _server_options(options)
    worker = EngineWorker()
    try:
        info, active = _load(worker, settings)
        server = HttpServer(worker, chosen, on_record=None if options.quiet else _print_record)
        server.start()
        try:
            _introduce(server.url, server.key, key_note, info, active)
            _wait_for_end(worker)
        finally:
            server.stop()
    finally:
        worker.close()
    print("Stopped.")
    return 0


def _server_options(options: argparse.Namespace) -> tuple[ServerOptions, str]:
    """The options, and where the key comes from.

    Raises:
        LoradeskError: they are not safe or out of range.
    """
    from loradesk_engine.serving.http import ServerOptions
    from loradesk_engine.serving.http.keys import key_file, own_key

    if options.no_key and options.api_key is not None:
        raise LoradeskError("There is a key or there is none.", field="--no-key", remedy="Leave one of the two out.")
    if options.no_key:
        key, note = None, "none: every program of this machine can use the model"
    elif options.api_key is not None:
        key, note = options.api_key, "as given"
    else:
        key, note = own_key(), f"kept in {key_file()}"
    return ServerOptions(
        host=options.host,
        port=options.port,
        key=key,
        allow_remote=options.allow_remote,
        allow_hosts=tuple(options.allow_host),
        allow_origins=tuple(options.allow_origin),
        adapter_roots=tuple(options.adapter_root),
        max_tokens=options.max_tokens,
        max_requests=options.max_requests,
        max_body_bytes=options.max_body_bytes,
        request_seconds=options.request_seconds,
    ), note


def _load(worker: EngineWorker, settings: LoadSettings) -> tuple[ModelInfo, Mapping[str, float]]:
    """Load the model; what is loaded, and the weights of the adapters that are active at first.

    Raises:
        LoradeskError: it cannot be loaded.
    """
    from loradesk_engine.events import (
        AdaptersActivated,
        LoadFailed,
        LoadProgressed,
        ModelLoaded,
        WorkerClosed,
    )

    events = worker.subscribe()
    worker.start()
    worker.send(Load(settings))
    stage = ""
    info: ModelInfo
    try:
        while True:
            event = events.get()
            if isinstance(event, LoadProgressed) and event.stage != stage:
                stage = event.stage
                if sys.stderr.isatty():
                    print(f"{stage} ...", file=sys.stderr)
            elif isinstance(event, ModelLoaded):
                info = event.info
            elif isinstance(event, AdaptersActivated):  # follows at once
                return info, event.weights
            elif isinstance(event, LoadFailed):
                problem = event.problem
                raise LoradeskError(problem.problem, file=problem.file, field=problem.field, remedy=problem.remedy)
            elif isinstance(event, WorkerClosed):
                raise LoradeskError("The engine ended while it was loading.")
    except KeyboardInterrupt:
        worker.send(CancelLoad())
        raise
    finally:
        worker.unsubscribe(events)


def _introduce(url: str, key: str | None, note: str, info: ModelInfo, active: Mapping[str, float]) -> None:
    """What one needs to make the first request."""
    authorization = f' \\\n    -H "Authorization: Bearer {key}"' if key is not None else ""
    print(f"Serving {info.name} at {url}/v1")
    if info.adapters:
        print(f"Adapters: {', '.join(adapter.name for adapter in info.adapters)}")
    for warning in info.warnings:
        print(f"Warning: {warning}")
    notice = none_active([adapter.name for adapter in info.adapters], active)
    if notice is not None:
        print(f"Note: {notice} Name one as `model` in a request, or activate some with POST /activate_adapters.")
    print(f"Key: {key} ({note})" if key is not None else f"Key: {note}")
    print(
        f"Try:\n  curl {url}/v1/chat/completions{authorization} \\\n"
        '    -H "Content-Type: application/json" \\\n'
        f'    -d \'{{"model": "{info.name}", "messages": [{{"role": "user", "content": "What is 17 + 25?"}}], '
        '"temperature": 0}\''
    )
    print(f"Routes: {url}/docs (any user name, the key as password). Ctrl+C stops.", flush=True)


def _wait_for_end(worker: EngineWorker) -> None:
    """Until Ctrl+C, SIGTERM or the end of the worker."""
    ended = threading.Event()
    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, lambda *_: ended.set())
    try:
        while not ended.wait(0.5):
            if not worker.alive:
                raise LoradeskError("The engine has ended.")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_record(record: RequestRecord) -> None:
    """A line for each request."""
    clock = time.strftime("%H:%M:%S", time.localtime(record.time))
    tokens = f" {record.completion_tokens} tokens" if record.completion_tokens else ""
    adapters = f" [{', '.join(record.adapters)}]" if record.adapters else ""
    note = f" {record.note}" if record.note else ""
    path = record.path.encode("ascii", "backslashreplace").decode()  # a client's control characters stay out
    safe = "".join(letter if letter.isprintable() else "?" for letter in f"{record.method} {path}")
    print(f"{clock} {record.status} {safe} {record.seconds:.2f} s{tokens}{adapters}{note}", flush=True)
