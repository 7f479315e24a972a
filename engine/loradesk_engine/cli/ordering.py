"""`loradesk ordering create|rename|preload|check|diff`: ordering files in the terminal and in scripts.

A flag that is missing is asked for when a person sits at the terminal; a script gets an error that names the flag.
Exit codes: 0 done (check: no errors; diff: no differences), 1 check found errors or diff found differences,
2 it could not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loradesk_engine.cli.ordering_prompt import MissingFlagError, ask, ask_list, ask_path, confirm, split_list
from loradesk_engine.cli.ordering_sources import (
    Adapters,
    Base,
    cached_base,
    look_at_preloads,
    read_base,
    read_loras,
    read_xlora_checkpoint,
    supported,
)
from loradesk_engine.errors import LoradeskError, OrderingError
from loradesk_engine.files import read_bytes
from loradesk_engine.ordering import build, json_text
from loradesk_engine.ordering.check import RULES, CheckContext, Finding, check, check_salvage
from loradesk_engine.ordering.finding import PreloadFacts
from loradesk_engine.ordering.mode import with_mode
from loradesk_engine.ordering.modules import ALL_LINEAR, target_names
from loradesk_engine.ordering.schema import MAX_BYTES, OrderingFile, PreloadAdapter, Salvage
from loradesk_engine.ordering.words import counted, listed

FOUND = 1
FAILED = 2
TRAINING_ORDER = "X-LoRA needs the names in the order used in training."


@dataclass
class Result:
    """What a command did: lines for people, the same facts for `--json`, and the exit code."""

    lines: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    code: int = 0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `ordering`; each of its commands sets `handler`, which takes the arguments and returns the exit code."""
    parser = subparsers.add_parser("ordering", help="make, change, check and compare ordering files")
    parser.set_defaults(handler=lambda _args: _usage(parser))
    commands = parser.add_subparsers(metavar="COMMAND", dest="ordering_command")
    _add_create(commands)
    _add_rename(commands)
    _add_preload(commands)
    _add_check(commands)
    _add_diff(commands)


def _usage(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return FAILED


# create


def _add_create(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands, "create", create, "make a file from a base model, from adapters or from an X-LoRA checkpoint"
    )
    parser.add_argument("--base", metavar="MODEL", help="hub id, folder or config.json of the base model")
    parser.add_argument(
        "--base-id", metavar="ID", help="what to call the base in the file, when --base is a local path"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--targets", metavar="A,B", help=f"target modules, separated by commas, or {ALL_LINEAR}")
    source.add_argument(
        "--target-pattern", metavar="REGEX", help="regular expression for whole module paths, as in PEFT"
    )
    source.add_argument(
        "--adapter",
        action="append",
        metavar="[NAME=]FOLDER",
        help="take the modules of a LoRA adapter; may be repeated",
    )
    source.add_argument("--xlora", metavar="FOLDER", help="take modules and names of an X-LoRA checkpoint")
    source.add_argument("--no-layers", action="store_true", help="LoRA: leave layers out")
    parser.add_argument(
        "--allow-missing", action="store_true", help="leave out target modules that the model does not have"
    )
    parser.add_argument("--names", metavar="A,B", help=f"adapter names for order. {TRAINING_ORDER}")
    parser.add_argument(
        "--preload", action="append", default=[], metavar="NAME=ID", help="add to preload_adapters; may be repeated"
    )
    _add_output(parser)


def create(args: argparse.Namespace) -> Result:
    """Make a new file."""
    preloads = [_preload_pair(text) for text in args.preload] or None
    if args.xlora is not None:
        ordering = _create_from_xlora(args, preloads)
    elif args.adapter is not None:
        ordering = _create_from_loras(args, preloads)
    elif args.no_layers:
        base_id = args.base or ask("Base model (hub id or folder)", "--base")
        ordering = build.new_file(base_id, _names(args), None, preloads)
    else:
        base = supported(_base(args))
        targets = args.target_pattern or _targets(args, base)
        ordering = build.create(
            base.model_id, base.config, targets, order=_names(args), preload_adapters=preloads, allow_missing=True
        )
    if args.base_id is not None:
        if not args.base_id.strip():
            raise OrderingError("The base model has no name.", field="--base-id", remedy="Give a hub id or a folder.")
        ordering = ordering.replace(base_model_id=args.base_id)
    layers, adapters = len(ordering.layers or ()), len(ordering.order or ())
    return _save(args, ordering, None, f"{counted(layers, 'layer')}, {counted(adapters, 'adapter')} in order")


def _create_from_xlora(args: argparse.Namespace, preloads: Sequence[PreloadAdapter] | None) -> OrderingFile:
    names = split_list(args.names) if args.names is not None else None
    base = read_base(args.base) if args.base else None
    if base is None:  # the adapters may say which base they are for, but then their weights have to be here
        adapters = read_xlora_checkpoint(args.xlora, names)
        base = _trained_base(args, adapters)
    supported(base)
    adapters = read_xlora_checkpoint(args.xlora, names, base.config)
    if names is None:
        names = list(adapters.order or ()) or ask_list(
            "Adapter names", "--names", hint=TRAINING_ORDER, names=list(adapters.modules)
        )
        adapters = read_xlora_checkpoint(args.xlora, names, base.config)
    missing = [name for name in names if name not in adapters.modules]
    if missing:
        raise OrderingError(
            f"The checkpoint has no adapter {missing[0]!r}.",
            file=args.xlora,
            field="order",
            remedy=f"It has {', '.join(adapters.modules) or 'none that could be found'}.",
        )
    modules = frozenset().union(*(adapters.modules[name] for name in names))
    ordering = build.create_from_modules(base.model_id, base.config, modules, order=names, preload_adapters=preloads)
    context = CheckContext(None, base.model_id, base.config, adapters.modules, adapters.classifier, "xlora")
    for finding in check(ordering, context):
        if finding.rule == "classifier-outputs":
            raise OrderingError(finding.message, file=args.xlora, field="order", remedy="Check --names and --base.")
    return ordering


def _create_from_loras(args: argparse.Namespace, preloads: Sequence[PreloadAdapter] | None) -> OrderingFile:
    sources = _adapter_sources(args.adapter)
    base = read_base(args.base) if args.base else None
    if base is None:
        base = _trained_base(args, read_loras(sources, None))
    adapters = read_loras(sources, supported(base).config)
    modules = frozenset().union(*adapters.modules.values())
    order = _names(args) if args.names is not None else list(sources)
    return build.create_from_modules(base.model_id, base.config, modules, order=order, preload_adapters=preloads)


def _trained_base(args: argparse.Namespace, adapters: Adapters) -> Base:
    """The base that the adapters name, or the one that the user gives."""
    if adapters.base_model_id is None:
        return _base(args)
    try:
        return read_base(adapters.base_model_id)
    except LoradeskError as problem:
        raise MissingFlagError(
            f"The adapters were trained on {adapters.base_model_id}, which could not be read ({problem.problem})",
            remedy="Say where it is with --base.",
        ) from problem


def _base(args: argparse.Namespace) -> Base:
    return read_base(args.base or ask("Base model (hub id or folder)", "--base"))


def _targets(args: argparse.Namespace, base: Base) -> str | list[str]:
    """Target modules that the model has, or that the user wants although it has not."""
    names = target_names(base.config)
    targets = split_list(args.targets) if args.targets is not None else []
    asked = not targets
    while True:
        if asked:
            hint = f"The model has {', '.join(names)}; {ALL_LINEAR} is all linears but lm_head."
            targets = ask_list("Target modules", "--targets", hint=hint, names=(*names, ALL_LINEAR))
        if [target.casefold() for target in targets] == [ALL_LINEAR]:
            return ALL_LINEAR
        try:
            if not args.allow_missing:
                build.refuse_missing_targets(targets, base.config)
            return targets
        except OrderingError as problem:
            if not asked:
                remedy = f"{problem.remedy} --allow-missing goes on without it."
                raise OrderingError(problem.problem, field="--targets", remedy=remedy) from None
            if confirm(f"{problem.problem} Go on without it?", "--allow-missing"):
                return targets


def _names(args: argparse.Namespace) -> list[str] | None:
    """Names for `order`; None leaves it out."""
    if args.names is not None:
        return split_list(args.names)
    hint = f"{TRAINING_ORDER} For LoRA they are the adapters active at first; empty leaves order out."
    return ask_list("Adapter names", "--names", hint=hint, optional=True) or None


# rename


def _add_rename(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "rename", rename, "give new adapter names or another order")
    parser.add_argument("file", nargs="?", help="the ordering file")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--names", metavar="A,B", help=f"the new order. {TRAINING_ORDER}")
    source.add_argument("--order-from", metavar="FILE", help="take the order of another ordering file")
    source.add_argument(
        "--map", action="append", metavar="OLD=NEW", help="rename one adapter where it occurs; may be repeated"
    )
    _add_output(parser, in_place=True)


def rename(args: argparse.Namespace) -> Result:
    """Change `order`, or names wherever they occur."""
    before = _read(args)
    if args.map is not None:
        after = build.rename(before, dict(_pair(text, "--map", "OLD=NEW") for text in args.map))
    elif args.order_from is not None:
        after = build.set_order(before, OrderingFile.read(args.order_from).order)
    else:
        names = split_list(args.names) if args.names is not None else []
        if not names:
            old = list(before.order or ())
            hint = f"They are {', '.join(old) or 'none'} now. {TRAINING_ORDER}"
            names = ask_list("New adapter names", "--names", hint=hint, names=old)
        after = build.set_order(before, names)
    return _save(args, after, before, f"order {', '.join(after.order or ()) or 'absent'}")


# preload


def _add_preload(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "preload", preload, "add, change or remove preload_adapters")
    parser.add_argument("file", nargs="?", help="the ordering file")
    for flag, meaning in (("--add", "add an adapter"), ("--change", "give an adapter another id")):
        parser.add_argument(
            flag,
            action="append",
            default=[],
            metavar="NAME=ID",
            help=f"{meaning}: hub id or folder of it, or of several in which it is found by its name; may be repeated",
        )
    parser.add_argument("--replace", action="store_true", help="what --add gives takes the place of all that is there")
    parser.add_argument(
        "--remove", action="append", default=[], metavar="NAME", help="remove an adapter; may be repeated"
    )
    _add_output(parser, in_place=True)


def preload(args: argparse.Namespace) -> Result:
    """Change `preload_adapters`: removals first, so that a name can be given again."""
    before = after = _read(args)
    added = [_preload_pair(text, "--add") for text in args.add]
    replace = args.replace
    if not (args.add or args.change or args.remove):
        names = ask_list("Names of the adapters to preload", "--add")
        source = ask("Hub id or folder that they are loaded from", "--add")
        added = [PreloadAdapter(name, source) for name in names]
        there = [adapter.name for adapter in before.preload_adapters or ()]
        replace = replace or (bool(there) and confirm(f"There are {', '.join(there)}. Replace them?", "--replace"))
    for name in args.remove:
        after = build.remove_preload(after, name)
    for text in args.change:
        adapter = _preload_pair(text, "--change")
        after = build.change_preload(after, adapter.name, adapter)
    if added or args.replace:
        after = build.preload(after, added, replace=replace)
    names = [adapter.name for adapter in after.preload_adapters or ()]
    return _save(args, after, before, f"preload adapters {', '.join(names) or 'absent'}")


# check


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "check", check_file, "find what is wrong with a file, and put it right")
    parser.add_argument("file", nargs="?", help="the ordering file")
    parser.add_argument(
        "--base", metavar="MODEL", help="hub id, folder or config.json of the base that it is used with"
    )
    parser.add_argument("--adapter", action="append", metavar="[NAME=]FOLDER", help="a LoRA adapter; may be repeated")
    parser.add_argument(
        "--adapters", metavar="FOLDER|ID", help="folder or hub id in which the adapters of order are found by name"
    )
    parser.add_argument("--xlora", metavar="FOLDER", help="the X-LoRA checkpoint that it is used with")
    parser.add_argument("--hub", action="store_true", help="ask the hub about preload adapters that are not downloaded")
    parser.add_argument("--mode", choices=("lora", "xlora"), help="what it is used for, when that is not plain")
    parser.add_argument("--quantized", choices=("bnb", "gguf"), help="the base is quantized in this way")
    parser.add_argument("--bits", type=int, help="bits of the quantized base")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings as well")
    parser.add_argument("--fix", action="store_true", help="apply the proposed fixes and save")
    parser.add_argument("--rules", action="store_true", help="list the rules")
    _add_output(parser, in_place=True)


def check_file(args: argparse.Namespace) -> Result:
    """Check a file; with `--fix`, save the mended one."""
    if args.rules:
        return Result([f"{rule:24}{meaning}" for rule, meaning in RULES.items()], {"rules": dict(RULES)})
    salvage = _salvage(args)
    ordering = before = salvage.ordering
    context = _context(args, ordering)
    applied: list[Finding] = []
    if salvage.problems and args.fix:
        raise salvage.problems[0][1]
    if args.fix:
        ordering, applied = build.fix(ordering, context)
    elif args.output or args.in_place:
        raise LoradeskError("There is nothing to save without --fix.", field="--output", remedy="Add --fix.")
    findings = check_salvage(salvage, context) if ordering is before else check(ordering, context)
    position = salvage.position if ordering is before else ordering.position
    result = Result()
    if applied and ordering != before:
        if args.output is None:
            args.in_place = True
        result = _save(args, ordering, before, f"{len(applied)} fixed", checked=False)
    result.lines = [f"fixed [{item.rule}] {item.fix.title}" for item in applied if item.fix] + result.lines
    result.lines += [_line(args.file, position, finding) for finding in findings] or ["No findings."]
    result.facts |= {
        "file": args.file,
        "compared_with_model": context.config is not None,
        "fixed": [_facts(before.position, finding) for finding in applied],
        "findings": [_facts(position, finding) for finding in findings],
    }
    if context.config is None:
        result.lines.append("The layers were not compared with a model: give --base.")
    unseen = [entry.name for entry, facts in (context.preloads or {}).items() if facts.unseen]
    if unseen:
        result.lines.append(f"Not downloaded, so not looked at: {listed(unseen)}. --hub asks the hub about them.")
    result.facts["not_looked_at"] = unseen
    bad = ("error", "warning") if args.strict else ("error",)
    result.code = FOUND if any(finding.severity in bad for finding in findings) else 0
    return result


def _context(args: argparse.Namespace, ordering: OrderingFile) -> CheckContext:
    """What the flags and this machine tell about the model and the adapters."""
    near = _folder_of(args.file)
    base = read_base(args.base) if args.base else cached_base(ordering.base_model_id, near)
    config = base.config if base else None
    adapters = None
    if args.xlora is not None:
        adapters = read_xlora_checkpoint(args.xlora, ordering.order, config)
    elif args.adapter is not None or args.adapters is not None:
        adapters = read_loras(_given_sources(args, ordering), config, near=near)
    base_id = args.base
    if base_id is not None and os.path.exists(os.path.expanduser(base_id)):
        base_id = os.path.abspath(os.path.expanduser(base_id))  # a relative path could be taken for a hub id
    context = CheckContext(
        file=args.file,
        base_model_id=base_id,
        config=config,
        adapter_modules=adapters.modules if adapters else None,
        preloads=look_at_preloads(ordering.preload_adapters or (), config, near=near, ask_hub=args.hub),
        xlora=adapters.classifier if adapters else None,
        mode=args.mode or ("xlora" if args.xlora else "lora" if args.adapter or args.adapters else None),
        quantized=args.quantized,
        bits=args.bits,
    )
    return with_mode(context, ordering)


def _given_sources(args: argparse.Namespace, ordering: OrderingFile) -> dict[str, str]:
    """Name -> source of what the flags give; `--adapters` serves the names of order that nothing else does."""
    sources = dict(_adapter_sources(args.adapter or []))
    if args.adapters is not None:
        elsewhere = {*sources, *(adapter.name for adapter in ordering.preload_adapters or ())}
        sources |= {name: args.adapters for name in ordering.order or () if name not in elsewhere}
    return sources


def _folder_of(file: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(file))).parent


Position = Callable[[str], tuple[int, int] | None]
"""Line and column of a JSON pointer."""


def _line(file: str, find: Position, finding: Finding) -> str:
    """`file:line:column: error [rule] message`, which editors and build logs turn into links."""
    position = find(finding.place)
    where = f"{file}:{position[0]}:{position[1]}" if position else file
    proposal = f" (--fix: {finding.fix.title})" if finding.fix else ""
    return f"{where}: {finding.severity} [{finding.rule}] {finding.message}{proposal}"


def _facts(find: Position, finding: Finding) -> dict[str, Any]:
    position = find(finding.place)
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "place": finding.place,
        "places": list(finding.places or (finding.place,)),
        "line": position[0] if position else None,
        "column": position[1] if position else None,
        "message": finding.message,
        "fix": finding.fix.title if finding.fix else None,
    }


# diff


def _add_diff(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "diff", diff_files, "show what differs between two files")
    parser.add_argument("file", nargs="?", help="the first ordering file")
    parser.add_argument("other", nargs="?", help="the second")


def diff_files(args: argparse.Namespace) -> Result:
    """Compare two files."""
    first = _read(args)
    second = OrderingFile.read(args.other or ask_path("Second ordering file", "OTHER"))
    changes = build.diff(first, second)
    facts = [asdict(change) for change in changes]
    lines = [str(change) for change in changes] or ["No differences."]
    return Result(lines, {"changes": facts}, FOUND if changes else 0)


# shared


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], Result],
    help_text: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(handler=lambda args: _run(run, args))
    return parser


def _add_output(parser: argparse.ArgumentParser, *, in_place: bool = False) -> None:
    parser.add_argument("--output", "-o", metavar="FILE", help="file to write; - is standard output")
    parser.add_argument("--force", action="store_true", help="overwrite without asking")
    if in_place:
        parser.add_argument("--in-place", "-i", action="store_true", help="write back to the file that was read")


def _run(run: Callable[[argparse.Namespace], Result], args: argparse.Namespace) -> int:
    """Carry out a command, print its result and return the exit code."""
    try:
        result = run(args)
    except LoradeskError as problem:
        if args.json:
            parts = {"kind": type(problem).__name__, "problem": problem.problem}
            places = {"file": problem.file, "field": problem.field, "remedy": problem.remedy}
            _print(json.dumps({"error": parts | places}, indent=2))
        else:
            print(f"loradesk: {problem}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\nloradesk: Stopped. Nothing was written.", file=sys.stderr)
        return 130
    if args.json:
        _print(json.dumps(result.facts, indent=2, ensure_ascii=False))
    elif result.lines:
        _print("\n".join(result.lines))
    return result.code


def _print(text: str) -> None:
    """Print, also to a reader that has gone (`| head`) and in encodings that lack a letter."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # or the exit would fail once more


def _save(
    args: argparse.Namespace, ordering: OrderingFile, before: OrderingFile | None, what: str, *, checked: bool = True
) -> Result:
    """Write the file where the flags or the user say; nothing is overwritten unasked."""
    target = args.file if getattr(args, "in_place", False) else args.output or ask_path("Output file", "--output")
    if target == "-":
        if args.json:
            raise LoradeskError("Standard output cannot hold both.", field="--output", remedy="Leave out --json.")
        return Result([ordering.dumps().removesuffix("\n")])
    path = Path(os.path.expanduser(target))
    allowed = args.force or getattr(args, "in_place", False)
    if path.exists() and not allowed and not confirm(f"{path} exists. Overwrite it?"):
        raise LoradeskError(
            "The file exists and was not overwritten.", file=path, remedy="Choose another, or add --force."
        )
    if checked:
        found = look_at_preloads(ordering.preload_adapters or (), None, near=_folder_of(str(path)))
        _refuse_broken_preloads(found, before)
    ordering.write(path)
    findings = check(ordering) if checked else []
    lines = [f"Wrote {path}: {what}."] + [_line(str(path), ordering.position, finding) for finding in findings]
    facts: dict[str, Any] = {
        "written": str(path),
        "base_model_id": ordering.base_model_id,
        "order": None if ordering.order is None else list(ordering.order),
        "layers": None if ordering.layers is None else len(ordering.layers),
        "preload_adapters": [adapter.name for adapter in ordering.preload_adapters or ()],
        "findings": [_facts(ordering.position, finding) for finding in findings],
    }
    if before is not None:
        facts["changes"] = [str(change) for change in build.diff(before, ordering)]
    return Result(lines, facts)


def _refuse_broken_preloads(preloads: Mapping[PreloadAdapter, PreloadFacts], before: OrderingFile | None) -> None:
    """Refuse new preload adapters that are not what lies at their ids.

    Raises:
        OrderingError: names the adapter.
    """
    old = set(before.preload_adapters or ()) if before is not None else set()
    for adapter, facts in preloads.items():
        if adapter not in old and facts.problem:
            raise OrderingError(facts.problem, file=adapter.adapter_model_id, field=f"preload adapter {adapter.name}")


def _salvage(args: argparse.Namespace) -> Salvage:
    args.file = args.file or ask_path("Ordering file", "FILE")
    data = read_bytes(args.file, limit=MAX_BYTES, error=OrderingError)
    return OrderingFile.salvage(json_text.decode(data, file=args.file), file=args.file)


def _read(args: argparse.Namespace) -> OrderingFile:
    args.file = args.file or ask_path("Ordering file", "FILE")
    return OrderingFile.read(args.file)


def _pair(text: str, flag: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left.strip() or not right.strip():
        raise LoradeskError(f"{text!r} is not of the form {form}.", field=flag, remedy=f"Write {flag} {form}.")
    return left.strip(), right.strip()


def _preload_pair(text: str, flag: str = "--preload") -> PreloadAdapter:
    return PreloadAdapter(*_pair(text, flag, "NAME=ID"))


def _adapter_sources(texts: Sequence[str]) -> Mapping[str, str]:
    """`NAME=FOLDER` or `FOLDER`, whose own name is taken then."""
    result: dict[str, str] = {}
    for text in texts:
        name, equals, source = text.partition("=")
        if not equals or os.path.exists(os.path.expanduser(text)):
            source = text
            name = Path(os.path.abspath(os.path.expanduser(text))).name
        if name in result:
            raise LoradeskError(f"Two adapters are named {name!r}.", field="--adapter", remedy="Write NAME=FOLDER.")
        result[name] = source
    return result
