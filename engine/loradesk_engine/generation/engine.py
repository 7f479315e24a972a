"""The engine: a loaded model and the requests it answers. One step = schedule, run, postprocess.

It is not thread-safe and never blocks on other threads: the worker thread owns it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import psutil
import torch

from loradesk_engine.adapters.load import LoadedAdapters, load_adapters
from loradesk_engine.commands import AdapterSource, ChatRequest, CompletionRequest, LoadSettings
from loradesk_engine.errors import BusyError, RequestError
from loradesk_engine.events import (
    AdapterInfo,
    AdaptersActivated,
    AdaptersChanged,
    Event,
    MemoryMeasured,
    ModelInfo,
)
from loradesk_engine.formats.hub import Progress, resolve_source, silent
from loradesk_engine.generation.active_adapters import ActiveAdapters
from loradesk_engine.generation.loading import LoadedBase, check_settings, load_base, origin_of, short_name
from loradesk_engine.generation.plan import ComputedStep, make_plan
from loradesk_engine.generation.postprocess import Postprocessor, started
from loradesk_engine.generation.request import checked_prompt, make_sequence
from loradesk_engine.generation.runner import Runner
from loradesk_engine.generation.scheduler import IDLE_SLOTS, Scheduler
from loradesk_engine.generation.sequence import AdapterState, TokenSequence
from loradesk_engine.log.defects import log_defect
from loradesk_engine.model.base import BaseSource, read_base
from loradesk_engine.model.cache import GROWTH
from loradesk_engine.model.device import choose_context, choose_device, free_memory, set_threads
from loradesk_engine.model.estimate import estimate_cache
from loradesk_engine.ordering.named_base import with_named_base

logger = logging.getLogger(__name__)

MAX_SEQUENCES = 32
STEP_TOKENS = 512
GPU_STEP_TOKENS = 2048
CACHE_SHARE = 0.1  # share of the free memory that the cache may take before the first request


def step_tokens_on(device: torch.device) -> int:
    """Maximum number of tokens in a step. A GPU computes 512 faster than the host can launch them."""
    return GPU_STEP_TOKENS if device.type == "cuda" else STEP_TOKENS


class EngineCore:
    """A loaded model. Use `EngineCore.load`.

    Attributes:
        context: maximum length of a sequence in tokens.
        mixture, classifier: the adapters and X-LoRA's classifier, or None.
    """

    def __init__(
        self,
        base: LoadedBase,
        adapters: LoadedAdapters | None,
        settings: LoadSettings,
        context: int,
        *,
        lookahead: bool = True,
        max_sequences: int = MAX_SEQUENCES,
        step_tokens: int | None = None,
        load_seconds: float = 0.0,
    ) -> None:
        self._base = base
        self.decoder = base.decoder
        self.tokenizer = base.tokenizer
        self.settings = settings
        self.context = context
        self.mixture = adapters.mixture if adapters else None
        self.classifier = adapters.classifier if adapters else None
        self._adapters = ActiveAdapters(adapters)
        self._warnings = base.warnings + (adapters.warnings if adapters else ())
        self._load_seconds = load_seconds
        self._runner = Runner(
            self.decoder,
            self.mixture,
            self.classifier,
            lookahead=lookahead,
            tgt_non_granular_index=settings.tgt_non_granular_index if self.classifier else None,
        )
        # Frozen scalings belong to one sequence at a time, as mistral.rs documents.
        step_tokens = step_tokens or step_tokens_on(self.decoder.device)
        self._scheduler = Scheduler(1 if self._runner.freezes else max_sequences, step_tokens)
        self._postprocessor = Postprocessor(self._scheduler, self.tokenizer)
        self._cancelled: set[str] = set()
        self._started: ComputedStep | None = None  # the next step, if the device has begun it already

    # --- loading ------------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        settings: LoadSettings,
        progress: Progress = silent,
        *,
        previous: EngineCore | None = None,
        lookahead: bool = True,
        max_sequences: int = MAX_SEQUENCES,
        step_tokens: int | None = None,
    ) -> EngineCore:
        """Load a base model and its adapters.

        Args:
            progress: called with a sentence and a fraction; may raise `Cancelled`.
            previous: the engine in use; if it has the same base, its weights are shared instead of loaded again.

        Raises:
            LoradeskError: names file, field and remedy. A failed load leaves nothing behind.
        """
        begun = time.perf_counter()
        check_settings(settings)
        settings = with_named_base(settings)
        folder = resolve_source(settings.base, revision=settings.revision, token=settings.token, progress=progress)
        progress("Reading the checkpoint", 0.0)
        source = read_base(folder, settings.quantize)
        context = choose_context(settings.context, source.config, folder)
        device = choose_device(settings.device)
        reusable = None if previous is None else previous._base
        base = load_base(settings, source, context, device, progress, reusable)
        adapters = None
        if settings.mode != "none":
            adapters = load_adapters(settings, base.decoder, source, progress)
        engine = cls(
            base,
            adapters,
            settings,
            context,
            lookahead=lookahead,
            max_sequences=max_sequences,
            step_tokens=step_tokens,
            load_seconds=time.perf_counter() - begun,
        )
        engine.enter_thread()
        progress("Preparing", 1.0)
        engine.prepare()
        return engine

    def prepare(self) -> None:
        """Make the first answers as fast as later ones. On a GPU their steps are captured, and the cache gets room for
        one conversation that fills the context, divided among a few. (On the CPU, memory costs nothing until it is
        written to.)
        """
        sequences = min(IDLE_SLOTS, self._scheduler.max_sequences)
        slots_each = self._runner.passes.slots_each
        position_bytes = estimate_cache(self.decoder.config, self.decoder.dtype, GROWTH) // GROWTH * slots_each
        most = int(free_memory(self.decoder.device) * CACHE_SHARE) // position_bytes  # positions
        if most < sequences * GROWTH:
            sequences = 1
        self._runner.prepare(sequences, max(1, min(self.context, most) // sequences))

    def shares_base(self, source: BaseSource, context: int, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether a load of this base, with this engine as `previous`, shares its weights."""
        return self._base.origin == origin_of(source, context, device, dtype)

    def enter_thread(self) -> None:
        """Prepare the calling thread for `step`: each thread has its own setting of how many cores a product uses."""
        set_threads(self.decoder.device, self.decoder.parameters)

    @property
    def info(self) -> ModelInfo:
        """Description of the loaded model."""
        return ModelInfo(
            name=short_name(self.settings),
            base=self.settings.base,
            architecture=self.decoder.config.architecture,
            mode=self.settings.mode,
            adapters=self.adapters,
            layer_paths=self.layer_paths,
            parameters=self.decoder.parameters,
            weight_bytes=self.decoder.nbytes,
            device=str(self.decoder.device),
            dtype=str(self.decoder.dtype).removeprefix("torch."),
            context=self.context,
            ordering=self.settings.ordering,
            load_seconds=self._load_seconds,
            warnings=self._warnings,
        )

    def memory(self) -> MemoryMeasured:
        """Memory of the process, on the device, and of the KV cache, in bytes."""
        device = self.decoder.device
        on_device = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        return MemoryMeasured(psutil.Process().memory_info().rss, on_device, self._runner.passes.cache.nbytes)

    # --- adapters -----------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The loaded adapters, in the order of the scalings' last axis."""
        return self._adapters.infos(self.decoder.linears)

    @property
    def layer_paths(self) -> tuple[str, ...]:
        """Paths of the adapted linears; index = layer axis of the scalings."""
        return self._adapters.layer_paths

    @property
    def active(self) -> Mapping[str, float]:
        """Name -> weight of the active adapters."""
        return self._adapters.weights

    def activate(self, weights: Mapping[str, float]) -> AdaptersActivated:
        """Set the active adapters; requests that follow the activation use them from their next token on.

        Raises:
            AdapterError: a name is not loaded, or a weight is out of range. Nothing is changed then.
        """
        self._adapters.weights = self._adapters.checked(weights)
        state = self._adapters.state(self.active)
        for sequence in self._sequences():
            if sequence.follow_activation:
                # Its cache then holds keys and values of both states, so no later turn may reuse it.
                mixed = sequence.computed > 0 and sequence.state.key != state.key
                sequence.state = AdapterState(state.weights, state.key)
                sequence.mixed_states |= mixed
        return AdaptersActivated(dict(self.active))

    def add_adapter(self, adapter: AdapterSource) -> AdaptersChanged:
        """Load one more LoRA adapter; it starts inactive.

        Raises:
            AdapterError, FileFormatError, HubError: it cannot be used; BusyError: requests run. Nothing is changed.
        """
        self._adapters.refuse_addition(adapter.name)
        self._refuse_while_running("add")
        self._adapters.add(adapter, self.settings.token)
        return self._adapters_changed()

    def remove_adapter(self, name: str) -> AdaptersChanged:
        """Unload a LoRA adapter.

        Raises:
            AdapterError: there is none of this name, or it is part of an X-LoRA; BusyError: requests run.
        """
        self._adapters.refuse_removal(name)
        self._refuse_while_running("remove")
        self._adapters.remove(name)
        return self._adapters_changed()

    def _refuse_while_running(self, what: str) -> None:
        if self._scheduler.busy:
            raise BusyError(
                f"Requests are running: it is not safe to {what} adapters under them.",
                remedy="Try again when they are done.",
            )

    def _adapters_changed(self) -> AdaptersChanged:
        self._runner.adapters_changed()
        self._started = None
        return AdaptersChanged(self.adapters)

    # --- requests -----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._scheduler.busy

    def submit(self, request: ChatRequest | CompletionRequest) -> None:
        """Queue a request. It uses the adapters that are active now, unless it names its own.

        Raises:
            RequestError, AdapterError, TemplateError: it cannot be answered.
        """
        if any(request.request_id == other.request_id for other in self._sequences()):
            raise RequestError("A request of this id is running.", field="request_id")
        tokens = checked_prompt(request, self.tokenizer, self.decoder.config.vocab_size, self.context)
        weights = self.active if request.adapters is None else self._adapters.checked(request.adapters)
        state, xlora = self._adapters.state(weights), self.classifier is not None
        self._scheduler.add(
            make_sequence(request, tokens, state, self.tokenizer, self.decoder, self.context, xlora=xlora)
        )

    def cancel(self, request_id: str) -> None:
        """Stop a request at the beginning of the next step. Unknown ids are ignored: it may have ended by itself."""
        if any(sequence.request_id == request_id for sequence in self._sequences()):
            self._cancelled.add(request_id)

    def _sequences(self) -> tuple[TokenSequence, ...]:
        return (*self._scheduler.running, *self._scheduler.waiting)

    # --- one step -----------------------------------------------------------------------------------------------------

    def step(self) -> list[Event]:
        """Advance every running request by one token, or by a chunk of its prompt."""
        events = [*self._end_cancelled(), *self._admit()]
        chunks = self._scheduler.schedule()
        if not chunks:
            return events
        plan = make_plan(chunks, self._started)
        try:
            output = self._runner.run(plan)
        except (RuntimeError, MemoryError) as problem:  # usually out of memory; the model itself is unharmed
            log_defect(logger, "A step of the engine", problem)
            return events + self._start_over(problem)
        self._started = output.started
        return events + self._postprocessor.apply(plan, output)

    def _end_cancelled(self) -> list[Event]:
        cancelled = [sequence for sequence in self._sequences() if sequence.request_id in self._cancelled]
        self._cancelled.clear()
        return [event for sequence in cancelled for event in self._postprocessor.finish(sequence, "cancelled")]

    def _admit(self) -> list[Event]:
        admitted = self._scheduler.admit()
        for sequence in admitted:
            sequence.admitted = time.perf_counter()
        return [started(sequence) for sequence in admitted]

    def _start_over(self, problem: Exception) -> list[Event]:
        """Fail all running requests after an aborted step, and drop the cache, whose contents are undefined."""
        failed: list[Event] = [
            self._postprocessor.fail(sequence, problem) for sequence in tuple(self._scheduler.running)
        ]
        self._scheduler.clear_slots()
        self._runner.clear_cache()
        self._started = None
        return failed

    def end_all(self, problem: Exception) -> list[Event]:
        """Fail every request, because the model is being unloaded."""
        return [self._postprocessor.fail(sequence, problem) for sequence in self._sequences()]
