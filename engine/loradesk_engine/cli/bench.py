"""`loradesk bench`: how fast the engine is on this machine, beside its peers on the same work."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loradesk_engine.errors import FileFormatError, RequestError
from loradesk_engine.files import read_json_object, write_atomic


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "bench",
        help="measure the engine beside its peers",
        description="Measure the engine on a model on disk, or on a shape with random weights, beside its peers on the "
        "same work in the same run. Prints a table in Markdown.",
    )
    parser.add_argument("model", nargs="?", metavar="FOLDER|GGUF", help="a model on disk")
    parser.add_argument("--shape", metavar="NAME", help="a shape with random weights: mistral-7b, tiny, ...")
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, help="on the CPU (default: each one's own choice)")
    parser.add_argument("--work", metavar="NAME,...", help="base, lora-9, xlora, ... (default: all)")
    parser.add_argument("--peers", metavar="NAME,...", help="transformers, peft, llama-cpp, mistralrs, mistralrs-0.3")
    parser.add_argument(
        "--peer-python",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="Python of the environment a peer is installed in; may be given several times",
    )
    parser.add_argument("--json", metavar="FILE", help="save every figure and sample, after each work")
    parser.add_argument("--show", metavar="FILE", help="print the table of a saved run, and measure nothing")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works; no real figures")
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument("--context", type=int, default=512, help="prompt tokens (default: 512)")
    sizes.add_argument("--tokens", type=int, default=64, help="new tokens (default: 64)")
    sizes.add_argument("--runs", type=int, default=5, help="answers after one to warm up (default: 5)")
    sizes.add_argument("--batch-context", type=int, help="the same for several sequences (default: context)")
    sizes.add_argument("--adapters-rank", type=int, default=16, help="of the random adapters (default: 16)")
    sizes.add_argument("--targets", metavar="NAME,...", help="adapted linears, or all (default: q, k, v, o and gate)")
    sizes.add_argument("--xlora-adapters", type=int, default=9, help="experts of X-LoRA (default: 9)")
    sizes.add_argument("--hit-rate", type=float, default=0.9, help="right first guesses of look-ahead (default: 0.9)")
    sizes.add_argument("--peer-seconds", type=float, default=40.0, help="of a peer for one work (default: 40)")
    parser.set_defaults(handler=run)


def run(options: argparse.Namespace) -> int:
    """Handler of the subcommand; prints the table and returns 0."""
    from loradesk_engine.bench.measure import measure
    from loradesk_engine.bench.peers import chosen_peers
    from loradesk_engine.bench.plan import DEFAULT_TARGETS, Plan, chosen_works
    from loradesk_engine.bench.subject import DiskSubject, ShapeSubject, Subject
    from loradesk_engine.bench.table import table

    if options.show:
        try:
            print(table(read_json_object(options.show)))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            problem = "This is no report of `loradesk bench`."
            raise FileFormatError(problem, file=options.show, remedy="Choose a file that --json saved.") from None
        return 0
    if bool(options.model) == bool(options.shape):
        raise RequestError("Name one model.", field="--shape", remedy="Give a folder or GGUF file, or --shape NAME.")
    if options.threads is not None and options.threads < 1:
        raise RequestError(f"{options.threads} is too few.", field="--threads", remedy="Use 1 or more.")
    works, peers, pythons = chosen_works(options.work), chosen_peers(options.peers), _pythons(options.peer_python)
    plan = Plan(
        context=options.context,
        tokens=options.tokens,
        runs=options.runs,
        rank=options.adapters_rank,
        targets=_targets(options.targets, DEFAULT_TARGETS),
        xlora_adapters=options.xlora_adapters,
        hit_rate=options.hit_rate,
        batch_context=options.batch_context or options.context,
        peer_seconds=options.peer_seconds,
    )
    if options.quick:
        plan = plan.quick()
    with tempfile.TemporaryDirectory() as files:
        subject: Subject
        if options.shape:
            subject = ShapeSubject(options.shape, plan, Path(files), options.device, options.dtype)
        else:
            subject = DiskSubject(Path(options.model), plan, Path(files), options.device, options.dtype)
        report = measure(
            subject,
            works,
            peers,
            plan,
            threads=options.threads,
            pythons=pythons,
            quick=options.quick,
            tell=_teller(),
            work_done=lambda report: _save(report, options.json),
        )
    print(table(report))
    return 0


def _save(report: dict[str, Any], file: str | None) -> None:
    report["command"] = shlex.join(["loradesk", *sys.argv[1:]])
    if file:
        write_atomic(file, json.dumps(report, indent=1).encode())


def _teller() -> Callable[[str], None]:
    """Prints lines about what is done, with the seconds since now, beside the table."""
    started = time.monotonic()
    return lambda line: print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True)


def _targets(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return default
    return () if text == "all" else tuple(name.strip() for name in text.split(",") if name.strip())


def _pythons(texts: list[str]) -> dict[str, str]:
    from loradesk_engine.bench.worker import PEERS

    found = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not sign or not path or name not in PEERS:
            raise RequestError(
                f"{text!r} is not NAME=PATH.", field="--peer-python", remedy=f"NAME is one of {', '.join(PEERS)}."
            )
        found[name] = path
    return found
