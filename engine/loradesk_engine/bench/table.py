"""The report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ENGINE = "loradesk"
NONE = "-"


def table(report: Mapping[str, Any]) -> str:
    """Head, one table of single answers, one of what only the engine is measured by, and who was left out and why."""
    parts = [_head(report), _answers(report), _guesses(report), _engine_only(report), _left_out(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    subject, machine, floor, plan = report["subject"], report["machine"], report["floor"], report["plan"]
    where = machine["accelerator"]["name"] if machine["accelerator"] else machine["processor"]
    kernels = "" if machine["accelerator"] else f"kernels {machine['kernels']}, "
    weights = "random weights" if subject["weights"] == "random" else "from its file"
    millions = _number(floor["parameters"] / 1e6)
    lines = [
        f"`{report['command']}`" if report.get("command") else "",
        f"{subject['name']}, {weights}, {millions} M parameters, {subject['dtype']}, on {where} "
        f"({machine['cores']} cores, {kernels}torch {machine['torch']}), {report['started'][:10]}.",
        f"Context {plan['context']}, {plan['tokens']} new tokens, medians of {plan['runs']} runs (lowest to highest), "
        f"adapters of rank {plan['rank']} on {', '.join(subject['targets'])}.",
        f"Floor {_ms(floor['token_seconds'])} ms a token: {_number(floor['weight_bytes'] / 1e6)} MB of weights at "
        f"{_number(floor['bytes_per_second']['median'] / 1e9)} GB/s, {floor['measured']}.",
    ]
    return "\n\n".join(line for line in lines if line)


def _answers(report: Mapping[str, Any]) -> str:
    base = _engine_token_seconds(report, "base")
    rows = []
    for work in report["works"]:
        for name, found in work["contenders"].items():
            if "left_out" in found:
                continue
            token = found["token_seconds"]
            ratio = work["ratios"].get(name)
            rows.append(
                (
                    work["title"],
                    f"{name} {found['version']}",
                    _spread(token, 1e3),
                    f"{1 / token['median']:,.1f}",
                    _times(token["median"] / report["floor"]["token_seconds"]),
                    _times(token["median"] / base) if base else NONE,
                    _spread(found["first_token_seconds"], 1e3),
                    f"{found['prompt_tokens_per_second']['median']:,.0f}",
                    _spread(found["load_seconds"]),
                    _mib(found["peak_memory_bytes"]),
                    _ratio(ratio, "token_seconds"),
                    _ratio(ratio, "prompt_token_seconds"),
                    _ratio(ratio, "load_seconds"),
                )
            )
    head = (
        "work", "who", "ms a token", "tokens/s", "by the floor", "by our base", "first token ms", "prompt tokens/s",
        "load s", "peak MiB", "decode: their time by ours", "prompt: theirs by ours", "load: theirs by ours",
    )  # fmt: skip
    return _markdown(head, rows)


def _guesses(report: Mapping[str, Any]) -> str:
    two_pass = _engine_token_seconds(report, "xlora-two-pass")
    rows = []
    for work in report["works"]:
        found = work.get("guesses")
        if found is None:
            continue
        drawn = f"drawn at temperature {found['temperature']:.2g}, for {found['wanted_share']:.0%}"
        for how, seen in (("greedy", found["greedy"]), (drawn, found["drawn"])):
            seconds = seen["token_seconds"]
            shares = (f"{seen['first_right']:.0%}", f"{seen['scalings_ready']:.0%}")
            faster = _times(two_pass / seconds["median"]) if two_pass else NONE
            rows.append((work["title"], how, *shares, _spread(seconds, 1e3), faster))
    head = ("work", "tokens", "first guess right", "scalings ready", "ms a token", "two passes by this")
    return _markdown(head, rows) if rows else ""


def _engine_only(report: Mapping[str, Any]) -> str:
    histories = sorted({turn["history_tokens"] for work in report["works"] for turn in work.get("next_turns", ())})
    sizes = sorted({row["sequences"] for work in report["works"] for row in work.get("throughput", ())})
    rows = []
    for work in report["works"]:
        turns = {turn["history_tokens"]: turn["first_token_seconds"] for turn in work.get("next_turns", ())}
        rates = {row["sequences"]: row["tokens_per_second"]["median"] for row in work.get("throughput", ())}
        activation = work.get("activation")
        if not turns and not rates and not activation:
            continue
        ratio = turns[histories[-1]]["median"] / turns[histories[0]]["median"] if len(turns) > 1 else None
        rows.append(
            (
                work["title"],
                *(_spread(turns.get(history), 1e3) for history in histories),
                _times(ratio),
                _spread(activation["call_seconds"], 1e3) if activation else NONE,
                _spread(activation["next_step_extra_seconds"], 1e3) if activation else NONE,
                ("yes" if activation["next_token_uses_it"] else "NO") if activation else NONE,
                *(f"{rates[size]:,.0f}" if size in rates else NONE for size in sizes),
                _times(rates[sizes[-1]] / rates[sizes[0]]) if len(rates) > 1 else NONE,
            )
        )
    if not rows:
        return ""
    head = (
        "work",
        *(f"next turn after {history:,}: first token ms" for history in histories),
        "longest by shortest",
        "activate ms",
        "its step's extra ms",
        "next token uses it",
        *(f"{size} at once: tokens/s" for size in sizes),
        "most by one",
    )
    note = (
        f"Several at once: prompts of {report['plan']['batch_context']} tokens; with 64 adapters each sequence has "
        "another one of them, else all have the same."
    )
    return f"{_markdown(head, rows)}\n\n{note}"


def _left_out(report: Mapping[str, Any]) -> str:
    reasons: dict[tuple[str, str], list[str]] = {}
    for work in report["works"]:
        for name, found in work["contenders"].items():
            if "left_out" in found:
                reasons.setdefault((name, found["left_out"]), []).append(work["name"])
    lines = [f"- {name} ({', '.join(works)}): {reason}" for (name, reason), works in reasons.items()]
    return "Left out:\n\n" + "\n".join(lines) if lines else ""


def _engine_token_seconds(report: Mapping[str, Any], name: str) -> float | None:
    for work in report["works"]:
        if work["name"] == name:
            return float(work["contenders"][ENGINE]["token_seconds"]["median"])
    return None


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def _ms(seconds: float | None) -> str:
    return NONE if seconds is None else _number(seconds * 1e3)


def _times(value: float | None) -> str:
    return NONE if value is None else f"{_number(value)} x"


def _spread(figure: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    if figure is None:
        return NONE
    median, low, high = (_number(figure[name] * scale) for name in ("median", "low", "high"))
    return median if len(figure["samples"]) == 1 else f"{median} ({low} to {high})"


def _ratio(ratio: Mapping[str, Any] | None, name: str) -> str:
    return NONE if ratio is None or ratio[name] is None else _times(ratio[name]["median"])


def _mib(count: int | None) -> str:
    return NONE if count is None else f"{count / 2**20:,.0f}"
