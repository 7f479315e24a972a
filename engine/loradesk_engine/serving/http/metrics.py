"""Counters in Prometheus' text format."""

from __future__ import annotations

from collections import Counter

from loradesk_engine.events import MemoryMeasured, RequestFinished

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts of one server; touched only by its event loop."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._finished: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._first_token = [0] * (len(BUCKETS) + 1)
        self._first_token_sum = 0.0
        self.failed = 0
        self.memory: MemoryMeasured | None = None

    def answered(self, method: str, route: str, status: int) -> None:
        """An HTTP request has ended. `route` is the pattern, never what a client made up."""
        self._requests[method, route, status] += 1

    def finished(self, event: RequestFinished) -> None:
        """A generation of this server has ended."""
        self._finished[event.finish_reason] += 1
        self._tokens["prompt"] += event.prompt_tokens
        self._tokens["cached"] += event.cached_tokens
        self._tokens["completion"] += event.completion_tokens
        place = next((n for n, bound in enumerate(BUCKETS) if event.first_token_seconds <= bound), len(BUCKETS))
        self._first_token[place] += 1
        self._first_token_sum += event.first_token_seconds

    def render(self, *, running: int, connections: int, loaded: bool) -> str:
        """All of them as text.

        Args:
            running: generations of this server that run or wait.
        """
        lines: list[str] = []

        def family(name: str, kind: str, text: str, *samples: tuple[str, float]) -> None:
            lines.append(f"# HELP loradesk_{name} {text}")
            lines.append(f"# TYPE loradesk_{name} {kind}")
            lines.extend(f"loradesk_{name}{labels} {value:.15g}" for labels, value in samples)

        family(
            "http_requests_total",
            "counter",
            "HTTP requests by method, route and status.",
            *(
                (f'{{method="{method}",route="{route}",status="{status}"}}', count)
                for (method, route, status), count in sorted(self._requests.items())
            ),
        )
        reasons = (("stop", "length", "cancelled"), self._finished)
        family(
            "generations_total",
            "counter",
            "Generations that ended, by reason.",
            *((f'{{reason="{reason}"}}', reasons[1][reason]) for reason in reasons[0]),
        )
        family("generations_failed_total", "counter", "Generations that failed.", ("", self.failed))
        family(
            "tokens_total",
            "counter",
            "Tokens by kind; cached ones are part of the prompt's.",
            *((f'{{kind="{kind}"}}', self._tokens[kind]) for kind in ("prompt", "cached", "completion")),
        )
        total = 0
        samples = []
        for bound, count in zip((*map(str, BUCKETS), "+Inf"), self._first_token, strict=True):
            total += count
            samples.append((f'_bucket{{le="{bound}"}}', float(total)))
        samples += [("_sum", self._first_token_sum), ("_count", float(total))]
        family("first_token_seconds", "histogram", "From admission to the first token.", *samples)
        family("generations_running", "gauge", "Generations that run or wait.", ("", running))
        family("connections_open", "gauge", "Open connections.", ("", connections))
        family("model_loaded", "gauge", "1 when a model is loaded.", ("", int(loaded)))
        if self.memory is not None:
            family("process_resident_bytes", "gauge", "Memory of the process.", ("", self.memory.process))
        return "\n".join(lines) + "\n"
