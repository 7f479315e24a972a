"""The engine: a loaded model and the requests it answers. One step = schedule, run, postprocess.

Not thread-safe and never blocking on anybody: the worker thread owns it.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import psutil
import torch
from torch import Tensor

from loradesk_engine.activation import active_weights
from loradesk_engine.adapters.load import LoadedAdapters, add_adapter, load_adapters
from loradesk_engine.adapters.mixture import LoraAdapter
from loradesk_engine.commands import AdapterSource, ChatRequest, CompletionRequest, LoadSettings, Quantize
from loradesk_engine.errors import AdapterError, BusyError, ContextLengthError, RequestError
from loradesk_engine.events import (
    AdapterInfo,
    AdaptersActivated,
    AdaptersChanged,
    Event,
    FinishReason,
    MemoryMeasured,
    ModelInfo,
    Problem,
    RequestFailed,
    RequestFinished,
    RequestStarted,
    TokensGenerated,
)
from loradesk_engine.formats.hub import Progress, resolve_source, silent
from loradesk_engine.formats.tokenizer import TextStream, Tokenizer
from loradesk_engine.generation.runner import Prediction, Runner
from loradesk_engine.generation.sampling import draw, logprob_of, process
from loradesk_engine.generation.scheduler import IDLE_SLOTS, Scheduler
from loradesk_engine.generation.sequence import AdapterState, Sequence, XLoraState
from loradesk_engine.generation.stop import StopStrings
from loradesk_engine.log.defects import log_defect
from loradesk_engine.model.base import BaseSource, read_base
from loradesk_engine.model.bnb import cpu_warning
from loradesk_engine.model.build import build_decoder
from loradesk_engine.model.cache import GROWTH
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.device import choose_context, choose_device, free_memory, set_threads
from loradesk_engine.model.estimate import choose_dtype, estimate_cache
from loradesk_engine.model.quantized import keeps_packed

logger = logging.getLogger(__name__)

MAX_SEQUENCES = 32
STEP_TOKENS = 512
GPU_STEP_TOKENS = 2048
CACHE_SHARE = 0.1  # of the free memory that the cache may take before anybody asks anything


def step_tokens_on(device: torch.device) -> int:
    """Most tokens that a step computes: a GPU is done with 512 before the host has launched them."""
    return GPU_STEP_TOKENS if device.type == "cuda" else STEP_TOKENS


@dataclass(frozen=True)
class _Base:
    """A loaded base model, and what it was loaded from: the next load of the same uses it again."""

    origin: tuple[object, ...]
    decoder: Decoder
    tokenizer: Tokenizer
    warnings: tuple[str, ...] = ()


class EngineCore:
    """A loaded model. Use `EngineCore.load`."""

    def __init__(
        self,
        base: _Base,
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
        self.layer_paths = adapters.layer_paths if adapters else ()
        self.active: dict[str, float] = dict(adapters.active) if adapters else {}
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
        frozen = self._runner.tgt_non_granular_index is not None
        step_tokens = step_tokens or step_tokens_on(self.decoder.device)
        self._scheduler = Scheduler(1 if frozen else max_sequences, step_tokens)
        self._cancelled: set[str] = set()

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
            LoradeskError: names file, field and remedy. Nothing of a failed load stays.
        """
        started = time.perf_counter()
        _check_settings(settings)
        folder = resolve_source(settings.base, revision=settings.revision, token=settings.token, progress=progress)
        progress("Reading the checkpoint", 0.0)
        source = read_base(folder, settings.quantize)
        context = choose_context(settings.context, source.config, folder)
        device = choose_device(settings.device)
        reusable = None if previous is None else previous._base
        base = _load_base(settings, source, context, device, progress, reusable)
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
            load_seconds=time.perf_counter() - started,
        )
        engine.enter_thread()
        progress("Preparing", 1.0)
        engine.prepare()
        return engine

    def prepare(self) -> None:
        """Make the first answers as fast as later ones: on a GPU their steps are captured, and the cache has room for
        as much as one conversation that fills the context, shared by a few. (On the CPU memory that nothing was written
        to costs nothing.)
        """
        sequences = min(IDLE_SLOTS, self._scheduler.max_sequences)
        held = estimate_cache(self.decoder.config, self.decoder.dtype, GROWTH) // GROWTH * self._runner.slots_each
        most = int(free_memory(self.decoder.device) * CACHE_SHARE) // held  # positions
        if most < sequences * GROWTH:
            sequences = 1
        self._runner.prepare(sequences, max(1, min(self.context, most) // sequences))

    def shares_base(self, source: BaseSource, context: int, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether a load of this base, with this engine as `previous`, takes its weights over."""
        return self._base.origin == _origin(source, context, device, dtype)

    def enter_thread(self) -> None:
        """Call it in the thread that will call `step`: how many cores a product uses is a setting of each thread."""
        set_threads(self.decoder.device, self.decoder.parameters)

    @property
    def info(self) -> ModelInfo:
        """What is loaded, for showing."""
        return ModelInfo(
            name=_short_name(self.settings),
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

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The loaded adapters, in the order of the scalings' last axis."""
        return tuple(self._adapter_info(adapter) for adapter in self.mixture.adapters) if self.mixture else ()

    def _adapter_info(self, adapter: LoraAdapter) -> AdapterInfo:
        linears = self.decoder.linears
        targets = dict.fromkeys(linears[index].path.rpartition(".")[2] for index in sorted(adapter.modules))
        left_out = f", {adapter.left_out} more in its file are left out" if adapter.left_out else ""
        missing = f", {len(adapter.missing)} that it should adapt are not in its file" if adapter.missing else ""
        return AdapterInfo(
            name=adapter.name,
            source=adapter.source,
            rank=max(rank for rank, _ in adapter.modules.values()),
            modules=len(adapter.modules),
            target_modules=tuple(targets),
            applied=f"applied to {len(adapter.modules)} of {len(linears)} modules{left_out}{missing}",
            nbytes=adapter.nbytes,
        )

    def memory(self) -> MemoryMeasured:
        """What process, device and cache hold."""
        device = self.decoder.device
        on_device = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        return MemoryMeasured(psutil.Process().memory_info().rss, on_device, self._runner.cache.nbytes)

    # --- adapters -----------------------------------------------------------------------------------------------------

    def activate(self, weights: Mapping[str, float]) -> AdaptersActivated:
        """Set the active adapters; requests that follow the activation use them from their next token on.

        Raises:
            AdapterError: a name is not loaded, or a weight is out of range. Nothing is changed then.
        """
        self.active = self._checked(weights)
        state = self._state(self.active)
        for sequence in (*self._scheduler.running, *self._scheduler.waiting):
            if sequence.follow_activation:
                # Keys and values made so far belong to the old state, those to come to the new: nobody may take them
                # over.
                mixed = sequence.computed > 0 and sequence.state.key != state.key
                sequence.state = AdapterState(state.weights, state.key)
                sequence.mixed_states |= mixed
        return AdaptersActivated(dict(self.active))

    def add_adapter(self, adapter: AdapterSource) -> AdaptersChanged:
        """Load one more LoRA adapter beside those that are there; it starts inactive.

        Raises:
            AdapterError, FileFormatError, HubError: it cannot be used; BusyError: requests run. Nothing is changed.
        """
        if self.classifier is not None:
            raise AdapterError(
                "The adapters of an X-LoRA model belong to its classifier.",
                field=adapter.name,
                remedy="Load the model in LoRA mode to add adapters.",
            )
        if self.mixture is None:
            raise AdapterError(
                "The model was loaded without adapters.", field=adapter.name, remedy="Load it in LoRA mode."
            )
        self._refuse_while_running("add")
        add_adapter(self.mixture, adapter, silent, self.settings.token)
        self._adapters_changed()
        return AdaptersChanged(self.adapters)

    def remove_adapter(self, name: str) -> AdaptersChanged:
        """Let go of a LoRA adapter.

        Raises:
            AdapterError: there is none of this name, or it is part of an X-LoRA; BusyError: requests run.
        """
        if self.mixture is None or self.classifier is not None:
            raise AdapterError("Only adapters of LoRA mode can be removed.", field=name)
        self.mixture.place(name)
        self._refuse_while_running("remove")
        self.mixture.remove(name)
        self.active.pop(name, None)
        self._adapters_changed()
        return AdaptersChanged(self.adapters)

    def _refuse_while_running(self, what: str) -> None:
        if self._scheduler.busy:
            raise BusyError(
                f"Requests are running: it is not safe to {what} adapters under them.",
                remedy="Try again when they are done.",
            )

    def _adapters_changed(self) -> None:
        assert self.mixture is not None
        self.layer_paths = self.mixture.adapted_paths()
        self.mixture.set_layers({path: place for place, path in enumerate(self.layer_paths)})
        self._runner.adapters_changed()

    def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Valid weights without zeros, in the adapters' order."""
        return active_weights(weights, [adapter.name for adapter in self.mixture.adapters] if self.mixture else ())

    def _state(self, weights: Mapping[str, float]) -> AdapterState:
        """The adapter state of these weights; its key says which cached keys and values were made under the same."""
        if self.mixture is None:
            return AdapterState({}, ())
        uids = {adapter.name: adapter.uid for adapter in self.mixture.adapters}
        return AdapterState(dict(weights), tuple(sorted((uids[name], weight) for name, weight in weights.items())))

    # --- requests -----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._scheduler.busy

    def submit(self, request: ChatRequest | CompletionRequest) -> None:
        """Queue a request. Its adapters are those that are active now, unless it names its own.

        Raises:
            RequestError, AdapterError, TemplateError: it cannot be answered.
        """
        if any(request.request_id == other.request_id for other in self._sequences()):
            raise RequestError("A request of this id is running.", field="request_id")
        if isinstance(request, ChatRequest):
            tokens = self.tokenizer.chat_ids(request.messages)
        elif isinstance(request.prompt, str):
            tokens = self.tokenizer.encode(request.prompt, special_tokens=True)
        else:
            tokens = list(request.prompt)
        if not tokens:
            raise RequestError("The prompt is empty.", field="prompt")
        place = "messages" if isinstance(request, ChatRequest) else "prompt"
        self._refuse_beyond(tokens, place)
        if len(tokens) >= self.context:
            raise ContextLengthError(
                f"The prompt has {len(tokens):,} tokens, the context {self.context:,}.",
                field=place,
                remedy="Shorten the conversation, or load the model with a longer context.",
            )
        sampling = request.sampling
        for field, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            self._refuse_beyond(ids, field)
        weights = self.active if request.adapters is None else self._checked(request.adapters)
        ends = () if sampling.ignore_end else self.decoder.config.eos_token_ids
        generator = torch.Generator(self.decoder.device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        self._scheduler.add(
            Sequence(
                request_id=request.request_id,
                tokens=tokens,
                prompt_length=len(tokens),
                limit=min(self.context, len(tokens) + (sampling.max_tokens or self.context)),
                sampling=sampling,
                stop_ids=frozenset((*ends, *sampling.stop_token_ids)),
                state=self._state(weights),
                follow_activation=request.follow_activation and request.adapters is None,
                want_scalings=request.want_scalings,
                stream=TextStream(self.tokenizer),
                stops=StopStrings(sampling.stop),
                generator=generator,
                xlora=XLoraState() if self.classifier is not None else None,
            )
        )

    def _refuse_beyond(self, ids: Iterable[int], field: str) -> None:
        """Refuse token ids that the model has no embedding for; a tokenizer may have some (Gemma 3's for images)."""
        vocabulary = self.decoder.config.vocab_size
        for token in ids:
            if not 0 <= token < vocabulary:
                text = self.tokenizer.token_text(token) if 0 <= token < 2**32 else ""
                named = f"{text!r} (id {token})" if text else f"id {token}"
                raise RequestError(
                    f"The token {named} is beyond the model's vocabulary of {vocabulary:,}.",
                    field=field,
                    remedy="Leave it out: this model has never seen it.",
                )

    def cancel(self, request_id: str) -> None:
        """Stop a request; it ends at the beginning of the next step. Unknown ids are ignored: it may have ended by
        itself.
        """
        if any(sequence.request_id == request_id for sequence in self._sequences()):
            self._cancelled.add(request_id)

    def _sequences(self) -> tuple[Sequence, ...]:
        return (*self._scheduler.running, *self._scheduler.waiting)

    def step(self) -> list[Event]:
        """Advance every running request by one token, or by a chunk of its prompt."""
        events: list[Event] = []
        for sequence in self._sequences():
            if sequence.request_id in self._cancelled:
                events += self._finish(sequence, "cancelled")
        self._cancelled.clear()
        for sequence in self._scheduler.admit():
            sequence.admitted = time.perf_counter()
            events.append(
                RequestStarted(
                    sequence.request_id, sequence.prompt_length, sequence.cached, dict(sequence.state.weights)
                )
            )
        planned = self._scheduler.plan()
        if not planned:
            return events
        chunks = self._runner.begin(planned)
        try:
            predictions = self._runner.run(chunks)
            drawn_for = [
                (chunk.sequence, prediction)
                for chunk, prediction in zip(chunks, predictions, strict=True)
                if prediction is not None
            ]
            drawn = [self._draw(sequence, prediction) for sequence, prediction in drawn_for]
            keep_logits = any(chunk.sequence.sampling.logprobs is not None for chunk in chunks)
            tokens = self._runner.read(drawn, keep_logits=keep_logits)
        except (RuntimeError, MemoryError) as problem:  # out of memory above all; the model itself is unharmed
            log_defect(logger, "A step of the engine", problem)
            return events + self._start_over(problem)
        for chunk in chunks:
            self._scheduler.computed(chunk)
        for (sequence, prediction), token in zip(drawn_for, tokens, strict=True):
            events += self._accept(sequence, token, prediction.logits)
        return events

    @torch.inference_mode()
    def _draw(self, sequence: Sequence, prediction: Prediction) -> Tensor:
        """The next token, int64 [], still on the device."""
        sampling = sequence.sampling
        processed = process(prediction.logits, sampling, sequence.tokens[: sequence.prompt_length], sequence.answer)
        if processed is prediction.logits and sampling.temperature == 0:
            return prediction.best
        return draw(processed, sampling, sequence.generator)

    @torch.inference_mode()
    def _accept(self, sequence: Sequence, token: int, logits: Tensor) -> list[Event]:
        """Add a token to the answer. logits: float32 [vocab], before any processing."""
        if token < 0:
            return [self._fail(sequence, RequestError("Nothing can be drawn: the model's logits are not numbers."))]
        self._runner.accept(sequence, token)
        if sequence.first_token is None:
            sequence.first_token = time.perf_counter()
        if token in sequence.stop_ids:
            return self._finish(sequence, "stop")
        sequence.tokens.append(token)
        if sequence.sampling.logprobs is not None:
            sequence.logprobs.append(logprob_of(logits, token, sequence.sampling.logprobs, self.tokenizer.token_bytes))
        text, stopped = sequence.stops.add(sequence.stream.add(token))
        event = self._generated(sequence, text, (token,))
        if stopped:
            return [event, *self._finish(sequence, "stop")]
        if len(sequence.tokens) >= sequence.limit:
            return [event, *self._finish(sequence, "length")]
        return [event]

    def _generated(self, sequence: Sequence, text: str, tokens: tuple[int, ...]) -> TokensGenerated:
        sequence.text += text
        scalings, start = None, sequence.scalings_start
        labels: tuple[str, ...] = ()
        if sequence.scalings:
            scalings = torch.cat([part.cpu() for part in sequence.scalings]).float().numpy()
            sequence.scalings.clear()
            sequence.scalings_start = start + len(scalings)
            labels = tuple(map(self.tokenizer.token_text, sequence.tokens[start : start + len(scalings)]))
        logprobs = tuple(sequence.logprobs)
        sequence.logprobs.clear()
        return TokensGenerated(
            sequence.request_id,
            text,
            tokens,
            tuple(map(self.tokenizer.token_text, tokens)),
            scalings,
            labels,
            start,
            logprobs,
            sequence.look_ahead,
        )

    def _finish(self, sequence: Sequence, reason: FinishReason) -> list[Event]:
        rest = sequence.stops.add(sequence.stream.finish())[0] + sequence.stops.finish()
        events: list[Event] = []
        if rest or sequence.scalings:
            events.append(self._generated(sequence, rest, ()))
        key = None if sequence.mixed_states else sequence.state.key
        keep = sequence.xlora.frozen_at if sequence.xlora is not None else None
        self._scheduler.release(sequence, key=key, keep=keep)
        now = time.perf_counter()
        first = sequence.first_token or now
        later = sequence.completion_tokens - 1
        events.append(
            RequestFinished(
                sequence.request_id,
                sequence.text,
                reason,
                sequence.prompt_length,
                sequence.completion_tokens,
                sequence.cached,
                first - sequence.admitted,
                later / (now - first) if later > 0 and now > first else 0.0,
                sequence.look_ahead,
            )
        )
        return events

    def _fail(self, sequence: Sequence, problem: Exception) -> RequestFailed:
        self._scheduler.release(sequence, key=None)
        return RequestFailed(sequence.request_id, Problem.of(problem))

    def _start_over(self, problem: Exception) -> list[Event]:
        """Fail all that run, after a step that was broken off: the cache may hold anything, so all of it goes."""
        failed: list[Event] = [self._fail(sequence, problem) for sequence in tuple(self._scheduler.running)]
        self._scheduler.forget()
        self._runner.forget()
        return failed

    def end_all(self, problem: Exception) -> list[Event]:
        """Fail every request, because the model goes away."""
        return [self._fail(sequence, problem) for sequence in self._sequences()]


def _check_settings(settings: LoadSettings) -> None:
    index = settings.tgt_non_granular_index
    if index is not None and settings.mode != "xlora":
        raise RequestError("Non-granular scalings are for X-LoRA only.", field="tgt_non_granular_index")
    if index is not None and (type(index) is not int or index < 1):
        raise RequestError(f"{index!r} is not a count of tokens.", field="tgt_non_granular_index")
    if settings.mode == "xlora" and settings.adapters:
        raise RequestError("An X-LoRA checkpoint brings its own adapters.", field="adapters")
    if settings.quantize not in get_args(Quantize):
        choices = ", ".join(get_args(Quantize))
        raise RequestError(f"{settings.quantize!r} is not supported.", field="quantize", remedy=f"Use {choices}.")


def _origin(source: BaseSource, context: int, device: torch.device, dtype: torch.dtype) -> tuple[object, ...]:
    """What a base is loaded from, and as what: equal ones share their weights."""
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in source.files)
    return (source.path.resolve(), stamps, source.config, context, device, dtype)


def _load_base(
    settings: LoadSettings,
    source: BaseSource,
    context: int,
    device: torch.device,
    progress: Progress,
    previous: _Base | None,
) -> _Base:
    dtype = choose_dtype(settings.dtype, source, device, psutil.virtual_memory().available)
    origin = _origin(source, context, device, dtype)
    if previous is not None and previous.origin == origin:
        return previous
    tokenizer = source.tokenizer()
    decoder = build_decoder(
        source.config,
        source.weights(),
        source.path,
        device=device,
        dtype=dtype,
        context=context,
        keep_packed=keeps_packed(source.parameters, device),
        progress=lambda fraction: progress("Loading the base model", fraction),
    )
    if previous is not None:
        gc.collect()  # what the earlier load left in reference cycles
    bnb = source.config.bnb
    slow = device.type == "cpu" and not decoder.native
    warnings: tuple[str, ...] = (cpu_warning(bnb.bits),) if bnb is not None and slow else ()
    if tokenizer.piece_count > source.config.vocab_size:  # added tokens are often beyond it and mean no harm
        warnings += (
            f"The tokenizer has {tokenizer.piece_count:,} pieces, the model {source.config.vocab_size:,}: texts with "
            "the others are refused. Are they of the same model?",
        )
    return _Base(origin, decoder, tokenizer, warnings)


def _short_name(settings: LoadSettings) -> str:
    return settings.name or Path(settings.base).name or settings.base
