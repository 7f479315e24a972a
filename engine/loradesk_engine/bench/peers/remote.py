"""Peers in processes of their own: what they hold, print or break stays there, and each may have its own environment.

The process runs `bench/worker.py`, which needs Python and the peer alone, and answers in lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import psutil

from loradesk_engine.bench import worker
from loradesk_engine.bench.contender import LeftOut
from loradesk_engine.bench.figures import Sample
from loradesk_engine.bench.plan import Work
from loradesk_engine.bench.prompts import Prompt
from loradesk_engine.bench.subject import FROZEN_AFTER, Subject

START_SECONDS = 60.0
LOAD_SECONDS = 180.0
ANSWER_SECONDS = 240.0
END_SECONDS = 5.0
WORKER = Path(worker.__file__)


class RemotePeer:
    """A peer of `worker.PEERS`.

    Args:
        python: of the environment it is installed in; None takes this one.
    """

    def __init__(self, name: str, subject: Subject, work: Work, threads: int | None, python: str | None) -> None:
        self.name = name
        self.version = "not installed"
        self.subject = subject
        self.work = work
        self._threads = threads or psutil.cpu_count(logical=False) or 1
        self._python = python or sys.executable
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: IO[str] | None = None

    def load(self) -> float | None:
        if self.subject.device.type != "cpu":
            raise LeftOut(f"{self.name} is measured on the CPU only.")
        request = self._load_request()
        if self._process is None:
            self._start()
        return float(self._ask(request, LOAD_SECONDS)["seconds"])

    def _load_request(self) -> dict[str, Any]:
        subject, work = self.subject, self.work
        if subject.path is None or subject.path.is_dir():
            raise LeftOut(f"{self.name} is measured on GGUF files only.")
        request: dict[str, Any] = {
            "command": "load",
            "model": str(subject.path),
            "context": subject.plan.context + 2 * subject.plan.tokens,
            "threads": self._threads,
            "mode": work.mode,
            "tokenizer": str(subject.tokenizer_folder()),
            "ends": list(subject.config.eos_token_ids),
            "adapters": [],
        }
        if work.mode == "xlora" and not work.lookahead:
            raise LeftOut(f"{self.name}'s X-LoRA stands beside look-ahead.")
        if work.mode == "lora":
            request["adapters"] = [str(subject.lora_folder(number)) for number in range(subject.plan.adapters_of(work))]
        if work.mode != "none" and self.name == "mistralrs-0.3":
            request["folder"] = str(subject.flat_folder(work))
            request["frozen_after"] = FROZEN_AFTER if work.non_granular else None
        return request

    def answer(self, prompt: Prompt, tokens: int) -> Sample:
        request = {"command": "answer", "ids": prompt.ids, "text": prompt.text, "tokens": tokens}
        found = self._ask(request, ANSWER_SECONDS)
        return Sample(found["prompt_tokens"], found["new_tokens"], found["first_seconds"], found["later_seconds"])

    def peak_memory(self) -> int | None:
        value = self._ask({"command": "memory"}, START_SECONDS)["bytes"]
        return None if value is None else int(value)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()  # the worker ends with its input
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._errors is not None:
            self._errors.close()

    def _start(self) -> None:
        environment = os.environ | {
            "RAYON_NUM_THREADS": str(self._threads),
            "OMP_NUM_THREADS": str(self._threads),
        }
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed in `close`)
        try:
            self._process = subprocess.Popen(
                [self._python, "-P", str(WORKER), self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment,
            )
        except OSError as problem:
            raise LeftOut(f"{self._python} cannot be run: {problem.strerror}.") from None
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        self.version = str(self._answer(START_SECONDS)["version"])

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self._kill()
            raise LeftOut(f"{self.name} gave no answer in {seconds:.0f} s.") from None
        if line is None:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise LeftOut(str(answer["problem"]))
        return answer

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self.close()

    def _died(self) -> LeftOut:
        assert self._errors is not None
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        self._kill()
        return LeftOut(f"The process of {self.name} ended: {lines[-1] if lines else 'it said nothing'}.")


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)
