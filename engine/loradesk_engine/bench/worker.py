"""The process of a peer: `python -P worker.py NAME`, a line of JSON for each command and each answer.

It runs in the peer's own environment, so it imports the standard library and the peer alone.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak resident set size to what is held now


def reset_resident_peak() -> bool:
    """Let the peak of this process's resident memory start anew; False where the system cannot."""
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def resident_bytes(field: str) -> int | None:
    """`VmRSS` (now) or `VmHWM` (highest) of this process; None where the system does not say."""
    try:
        found = re.search(rf"^{field}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


class _Refused(Exception):
    """The peer cannot do it; the sentence goes into the report."""


class _Model(Protocol):
    def load(self, request: dict[str, Any]) -> None: ...

    def answer(self, request: dict[str, Any]) -> dict[str, Any]: ...


class LlamaCpp:
    """llama-cpp-python: the token ids go in as they are, one evaluation a token."""

    package = "llama-cpp-python"

    def __init__(self) -> None:
        self._library = importlib.import_module("llama_cpp")
        self._model: Any = None

    def load(self, request: dict[str, Any]) -> None:
        if request["mode"] != "none":
            raise _Refused("llama.cpp takes adapters as GGUF files only, and has no X-LoRA.")
        self._model = None
        self._model = self._library.Llama(
            request["model"],
            n_ctx=request["context"],
            n_threads=request["threads"],
            n_threads_batch=request["threads"],
            verbose=False,
        )

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        self._model.reset()
        started = time.perf_counter()
        self._model.eval(request["ids"])
        token = self._model.sample(temp=0.0)
        first = time.perf_counter()
        for _ in range(request["tokens"] - 1):
            self._model.eval([token])
            token = self._model.sample(temp=0.0)
        ended = time.perf_counter()
        return _timed(len(request["ids"]), request["tokens"], first - started, ended - first)


class MistralRs:
    """mistral.rs since adapters are chosen by request: one LoRA adapter at a time, X-LoRA on Phi-3 files only."""

    package = "mistralrs"

    def __init__(self) -> None:
        self._library = importlib.import_module("mistralrs")
        self._runner: Any = None
        self._options: dict[str, Any] = {}

    def load(self, request: dict[str, Any]) -> None:
        if request["mode"] == "xlora":
            raise _Refused("This mistral.rs has X-LoRA in GGUF for Phi-3 only.")
        if len(request["adapters"]) > 1:
            raise _Refused("This mistral.rs applies one adapter to a request.")
        library = self._library
        self._options = {"ignore_eos": True}
        choice: dict[str, Any] = {}
        if request["adapters"]:
            choice["adapters"] = [library.LoraAdapter(alias="adapter", source=request["adapters"][0])]
            self._options["adapter"] = "adapter"
        file = Path(request["model"])
        self._runner = None
        self._runner = library.Runner(
            which=library.Which.GGUF(quantized_model_id=str(file.parent), quantized_filename=file.name, **choice),
            prefix_cache_n=0,
            token_source="none",
        )

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return _completion(self._library, self._runner, request, self._options)


class MistralRsOrdering:
    """mistral.rs 0.3, whose LoRA and X-LoRA read ordering files."""

    package = "mistralrs"

    def __init__(self) -> None:
        self._library = importlib.import_module("mistralrs")
        if hasattr(self._library, "LoraAdapter"):
            raise _Refused("This mistral.rs is newer than 0.3: install mistralrs==0.3.2.")
        self._runner: Any = None
        self._options: dict[str, Any] = {}

    def load(self, request: dict[str, Any]) -> None:
        which, file, mode = self._library.Which, Path(request["model"]), request["mode"]
        base = {"quantized_model_id": str(file.parent), "quantized_filename": file.name}
        if mode == "none":
            chosen = which.GGUF(**base)
        else:
            folder = request["folder"]
            base |= {"tok_model_id": request["tokenizer"], "order": str(Path(folder, "ordering.json"))}
            chosen = (
                which.XLoraGGUF(**base, xlora_model_id=folder, tgt_non_granular_index=request["frozen_after"])
                if mode == "xlora"
                else which.LoraGGUF(**base, adapters_model_id=folder)
            )
        # the end of an answer made as unlikely as can be: it has no way to be ignored
        self._options = {"logit_bias": {token: -100.0 for token in request["ends"]}}
        self._runner = None
        self._runner = self._library.Runner(which=chosen, prefix_cache_n=0, token_source="none")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        return _completion(self._library, self._runner, request, self._options)


def _completion(library: Any, runner: Any, request: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """One completion by mistral.rs; the times are its own."""
    usage = runner.send_completion_request(
        library.CompletionRequest(
            prompt=request["text"], model="model", max_tokens=request["tokens"], temperature=0.0, top_k=1, **options
        )
    ).usage
    if usage.completion_tokens < 2:
        raise _Refused("The answer ended at once.")
    return _timed(
        usage.prompt_tokens, usage.completion_tokens, usage.total_prompt_time_sec, usage.total_completion_time_sec
    )


def _timed(prompt_tokens: int, new_tokens: int, first: float, later: float) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "first_seconds": first,
        "later_seconds": later,
    }


PEERS: dict[str, type[LlamaCpp] | type[MistralRs] | type[MistralRsOrdering]] = {
    "llama-cpp": LlamaCpp,
    "mistralrs": MistralRs,
    "mistralrs-0.3": MistralRsOrdering,
}


class _Worker:
    """Carries out the commands of one peer."""

    def __init__(self, name: str) -> None:
        kind = PEERS[name]
        try:
            self._model: _Model = kind()
            self.version = version(kind.package)
        except (ImportError, PackageNotFoundError) as problem:
            raise _Refused(f"{kind.package} is not installed there ({problem}).") from None
        self._before: int | None = None

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["command"] == "load":
            self._before = resident_bytes("VmRSS") if reset_resident_peak() else None
            started = time.perf_counter()
            self._model.load(request)
            return {"seconds": time.perf_counter() - started}
        if request["command"] == "answer":
            return self._model.answer(request)
        peak = resident_bytes("VmHWM")
        return {"bytes": None if peak is None or self._before is None else peak - self._before}


def main(name: str) -> int:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the peer itself prints is not an answer

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker = _Worker(name)
    except _Refused as problem:
        tell({"problem": str(problem)})
        return 1
    tell({"version": worker.version})
    for line in sys.stdin:
        try:
            tell(worker.do(json.loads(line)))
        except _Refused as problem:
            tell({"problem": str(problem)})
        except Exception as problem:  # noqa: BLE001 - whatever the peer raises is the reason it is left out
            tell({"problem": f"{type(problem).__name__}: {problem}"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
