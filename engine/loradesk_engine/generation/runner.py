"""Turns chunks into forward passes: the batch, the mixture, and X-LoRA's scaling rows."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture, MixtureDelta
from loradesk_engine.generation.graphs import DecodeGraph, DecodeGraphs
from loradesk_engine.generation.sampling import likeliest
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import Sequence, XLoraState
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.device import SMALL_MODEL, one_thread

GUESS_MEMORY = 0.1  # weight of the latest guess in the running share of right ones
GUESS_WORTH = 0.4  # under this share a guess row costs more than it saves
WEIGHTS_KEPT = 64  # adapter states whose weights are kept on the device


@dataclass(frozen=True)
class Prediction:
    """What follows a sequence. logits: float32 [vocab]; best: int64 [], the likeliest token, -1 if they are no numbers.

    Valid until the runner's next pass.
    """

    logits: Tensor
    best: Tensor


@dataclass(frozen=True)
class _Pass:
    """What a forward pass gave.

    Attributes:
        logits, best: of the last rows of the parts that were asked for, float32 [asked, vocab] and int64 [asked].
        scalings: what the classifier gives for all rows of the parts to be classified, float32 [rows, layers,
            adapters]; None if there are none.
        graph: the one that was replayed, if one was.
    """

    logits: Tensor
    best: Tensor
    scalings: Tensor | None
    graph: DecodeGraph | None = None

    def kept(self) -> _Pass:
        """The same, beyond the graph's next replay."""
        return _Pass(self.logits.clone(), self.best.clone(), self.scalings)

    def joined(self, other: _Pass) -> _Pass:
        """What both gave, one behind the other."""
        scalings = [part for part in (self.scalings, other.scalings) if part is not None]
        return _Pass(
            torch.cat([self.logits, other.logits]),
            torch.cat([self.best, other.best]),
            torch.cat(scalings) if scalings else None,
        )


@dataclass(frozen=True)
class _Step:
    """A forward pass and what it was for.

    Attributes:
        chunks, scalings: its generation rows.
        ahead: chunks of the sequences whose next scalings it computed beside them.
        passed: with the logits of the chunks that reach the end of their sequence, then those of `ahead`.
    """

    chunks: Many[Chunk]
    scalings: Many[Tensor | None]
    ahead: Many[Chunk]
    passed: _Pass

    def part(self, chunks: Many[Chunk], scalings: Many[Tensor | None]) -> _Step | None:
        """What it has of these chunks, where all of its own reach the end of their sequence; None where one of them was
        not computed, or not with these scalings.
        """
        computed = {key: number for number, key in enumerate(_keys(self.chunks, self.scalings))}
        numbers = [computed[key] for key in _keys(chunks, scalings) if key in computed]
        if len(numbers) < len(chunks):
            return None
        wanted = {chunk.sequence for chunk in chunks}
        kept = [number for number, chunk in enumerate(self.ahead) if chunk.sequence in wanted]
        rows = [*numbers, *(len(self.chunks) + number for number in kept)]
        if rows == list(range(len(self.passed.best))):
            return self
        logits, best, next_scalings = self.passed.logits, self.passed.best, self.passed.scalings
        next_scalings = None if next_scalings is None else _chosen(next_scalings, kept)
        passed = _Pass(_chosen(logits, rows), _chosen(best, rows), next_scalings)
        return _Step(chunks, scalings, [self.ahead[number] for number in kept], passed)


def _keys(chunks: Many[Chunk], scalings: Many[Tensor | None]) -> list[tuple[int, ...]]:
    return [
        (id(chunk.sequence), chunk.start, chunk.length, id(row)) for chunk, row in zip(chunks, scalings, strict=True)
    ]


@dataclass(frozen=True)
class _Rows:
    """Rows of one sequence in a forward pass: tokens from position `start`, their cache slot and their scalings.

    scalings: float32 [length or 1, layers or 1, adapters], or None for the base model.
    """

    tokens: Many[int]
    start: int
    slot: int
    scalings: Tensor | None


class Runner:
    """Runs the model for the scheduler.

    A sequence has one cache slot, or two in X-LoRA mode: one for the generation rows (adapted activations), one for the
    scaling rows (activations of the scaling pass). Both are exact, so nothing is ever computed again.

    Look-ahead: when token x[t] is known, its scaling row has run, and that row's own logits are the base model's guess
    of x[t+1]. One forward pass has two rows: the generation row of x[t], and the scaling row of the guess. If the
    sampled token equals the guess, its scalings are ready; else its scaling row runs by itself. Only the scalings'
    computation is speculative: the output is the same for any sampling. A guess row that is wrong costs time, so it is
    left out while the base's guesses are mostly wrong; they stay known from the scaling rows, and so is when they
    become right again. Where other sequences decode beside it, the row of a wrong guess's true token rides in their
    pass and the sequence itself comes with the next one, so nobody waits for somebody else's wrong guess.

    On CUDA the next step of sequences that decode starts as soon as their tokens are drawn, before the host has read
    them: what the host does with a token costs no time then. The scalings of X-LoRA's next step depend on the token, so
    it starts when the host has read it, before it does anything else. If the next step turns out to be another one (a
    request ended, an adapter was switched), that pass is thrown away.

    Attributes:
        slots_each: slots of the cache that a sequence has.

    Args:
        lookahead: whether to do so; without it every token costs two passes.
        tgt_non_granular_index: freeze the scalings after this many completion tokens; the scaling pass stops then.
    """

    def __init__(
        self,
        decoder: Decoder,
        mixture: Mixture | None = None,
        classifier: Classifier | None = None,
        *,
        lookahead: bool = True,
        tgt_non_granular_index: int | None = None,
    ) -> None:
        self.decoder = decoder
        self.mixture = mixture
        self.classifier = classifier
        self.lookahead = lookahead
        self.tgt_non_granular_index = tgt_non_granular_index
        self.cache = decoder.new_cache()
        self.slots_each = 2 if classifier is not None else 1
        self._weights: dict[object, Tensor] = {}  # adapter state's key -> float32 [1, 1, adapters]
        self._uniform: tuple[Tensor, tuple[int, ...], MixtureDelta | None] | None = None  # the last one made
        self._new_guesses: list[tuple[Sequence, Tensor]] = []  # not read from the device yet
        self._behind: list[Chunk] = []  # whose scaling rows ride in the next pass
        self._replayed: _Step | None = None  # the step that tokens are drawn from now, if the next one can be started
        self._started: _Step | None = None  # the step after it, if it was started already
        self._graphs: DecodeGraphs | None = None
        self._kernels: kernels.StepKernels | None = None  # for all passes on the CPU
        if DecodeGraphs.usable(decoder):
            self._graphs = DecodeGraphs(decoder, self.cache, mixture, classifier)
        elif decoder.device.type == "cpu" and (decoder.native or decoder.parameters < SMALL_MODEL):
            # (else torch does the products on its own threads, and those of the kernels would get in their way)
            self._kernels = kernels.step_kernels(decoder.device, decoder.dtype)

    @property
    def starts_early(self) -> bool:
        """Whether `start` may do anything."""
        return self._graphs is not None and self.classifier is not None and self._started is None

    @torch.inference_mode()
    def prepare(self, sequences: int, positions: int) -> None:
        """Make room in the cache, and compile and capture what the first tokens need, so that they do not wait for it.

        sequences, positions: what the cache has room for from the start. One that grows is copied, and its graphs are
            captured anew.
        """
        self.cache.reserve(sequences * self.slots_each, positions)
        if self._graphs is None:
            return
        for rows in range(1, self.slots_each + 1):
            for adapted in (False, True) if self.mixture is not None and self.mixture.adapters else (False,):
                zeros = [0] * rows
                self._graphs.graph(rows, adapted=adapted).run(zeros, zeros, zeros, [None] * rows)

    def begin(self, chunks: Many[Chunk]) -> list[Chunk]:
        """Those of a step's chunks that `run` is to compute now. Of the others only the scaling rows run beside them;
        they are ready in the next step.
        """
        self._behind = []
        if self.classifier is None:
            return list(chunks)
        missing = [chunk for chunk in chunks if not self._has_scalings(chunk)]
        if len(missing) < len(chunks) and all(chunk.length == 1 for chunk in missing):
            self._behind = missing
        return [chunk for chunk in chunks if chunk not in self._behind]

    @torch.inference_mode()
    def run(self, chunks: Many[Chunk]) -> list[Prediction | None]:
        """Compute what `begin` gave. Predicts what follows each chunk that reaches the end of its sequence."""
        self._new_guesses.clear()
        moved = self._reserve([*chunks, *self._behind])
        scalings = self._scalings(chunks)
        started, self._started, self._replayed = self._started, None, None
        step = None if started is None or self._behind else started.part(chunks, scalings)
        if step is None:
            step = self._step(chunks, scalings)
        self._behind = []
        # (what was started before the cache moved is right, but its graph reads where the cache was)
        if step.passed.graph is not None and not (moved and step is started) and self._knows_next_scalings(step):
            self._replayed = step
        for chunk in chunks:
            if chunk.sequence.xlora is not None:
                chunk.sequence.xlora.checked = chunk.sequence.xlora.guess
        asked = len(step.passed.best) - len(step.ahead)
        for place, chunk in enumerate(step.ahead):
            assert step.passed.scalings is not None
            _xlora(chunk.sequence).ready = step.passed.scalings[place]
            self._new_guesses.append((chunk.sequence, step.passed.best[asked + place]))
        predictions = iter(zip(step.passed.logits, step.passed.best, strict=True))
        return [Prediction(*next(predictions)) if _reaches_end(chunk) else None for chunk in chunks]

    def _step(self, chunks: Many[Chunk], scalings: Many[Tensor | None]) -> _Step:
        """Generation rows of chunks, and scaling rows of guesses and of the chunks behind."""
        rows = [self._rows(chunk, 0, chunk_scalings) for chunk, chunk_scalings in zip(chunks, scalings, strict=True)]
        guessed = [chunk for chunk in chunks if self._may_guess(chunk)]
        rows += [self._guess_row(chunk) for chunk in guessed]
        rows += [self._rows(chunk, 1, self._scaling_pass_scalings()) for chunk in self._behind]
        asked = [number for number, chunk in enumerate(chunks) if _reaches_end(chunk)]
        ahead = range(len(chunks), len(rows))
        active = self._active([chunk.sequence for chunk in chunks])
        return _Step(chunks, scalings, [*guessed, *self._behind], self._pass(rows, [*asked, *ahead], ahead, active))

    @torch.inference_mode()
    def start(self, chunks: Many[Chunk]) -> None:
        """Start the step that computes these chunks, if it is one of X-LoRA's with all scalings at hand. `run` takes
        what it gives if it is asked for the same.
        """
        ready = self.starts_early and all(chunk.length == 1 and self._has_scalings(chunk) for chunk in chunks)
        if chunks and ready:
            self._reserve(chunks)
            self._started = self._step(chunks, [self._row(chunk.sequence) for chunk in chunks])

    @torch.inference_mode()
    def read(self, tokens: Many[Tensor], *, keep_logits: bool) -> list[int]:
        """The ids of drawn tokens, each int64 []; the one time in a step that the host waits for the device.

        keep_logits: somebody looks at the logits after this, so the next step must not be started yet.
        """
        drawn = [*tokens, *(guess for _, guess in self._new_guesses)]
        if not drawn:
            return []
        together = torch.stack(drawn)
        if together.device.type == "cuda":
            there = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
            there.copy_(together, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
            if not keep_logits:
                self._start_next(together)
            done.synchronize()
            ids: list[int] = there.tolist()
        else:
            ids = together.tolist()
        for (sequence, _), guess in zip(self._new_guesses, ids[len(tokens) :], strict=True):
            _xlora(sequence).guess = max(guess, 0)
        self._new_guesses.clear()
        return ids[: len(tokens)]

    def _start_next(self, tokens: Tensor) -> None:
        """Start the step after the one that `tokens` were drawn from, if that was a replay of plain decoding."""
        last, self._replayed = self._replayed, None
        if last is None or len(last.chunks) != len(tokens):
            return
        chunks, graph = [Chunk(chunk.sequence, chunk.start + 1, 1) for chunk in last.chunks], last.passed.graph
        if graph is not None and max(chunk.start for chunk in chunks) < self.cache.capacity:
            graph.advance(tokens.clamp(min=0))
            self._started = _Step(chunks, last.scalings, (), last.passed)  # in the same place as the last one's

    def _knows_next_scalings(self, step: _Step) -> bool:
        """Whether the next tokens have the same scalings, whatever they are."""
        if self.classifier is None:
            return True
        frozen = (
            _xlora(chunk.sequence).frozen is not None and scalings is _xlora(chunk.sequence).row
            for chunk, scalings in zip(step.chunks, step.scalings, strict=True)
        )
        return not step.ahead and all(frozen)

    def accept(self, sequence: Sequence, token: int) -> None:
        """Tell the runner which token was sampled, before the next step: a right guess's scalings are ready."""
        state = sequence.xlora
        if state is None or state.frozen is not None or state.checked is None:
            return
        right = state.checked == token
        state.right += (right - state.right) * GUESS_MEMORY
        if state.ready is None:
            state.guess = None  # no scaling row ran for it: the next pass makes a new one
        elif right:
            state.hits += 1
        else:
            state.misses += 1
            state.ready = state.guess = None

    def _rows(self, chunk: Chunk, kind: int, scalings: Tensor | None) -> _Rows:
        """A chunk's generation rows (kind 0) or scaling rows (kind 1)."""
        tokens = chunk.sequence.tokens[chunk.start : chunk.start + chunk.length]
        return _Rows(tokens, chunk.start, self._slot(chunk.sequence, kind), scalings)

    def _slot(self, sequence: Sequence, kind: int) -> int:
        return self.slots_each * (sequence.slot or 0) + kind

    def _reserve(self, chunks: Many[Chunk]) -> bool:
        """Make room in the cache. Returns whether it lies elsewhere now."""
        slots = max((chunk.sequence.slot or 0) + 1 for chunk in chunks) * self.slots_each
        # one position more than the sequence has: the scaling row of the guess
        positions = max(chunk.start + chunk.length for chunk in chunks) + 1
        return self.cache.reserve(slots, positions)

    # --- scalings -----------------------------------------------------------------------------------------------------

    def _scalings(self, chunks: Many[Chunk]) -> list[Tensor | None]:
        """Scalings of the generation rows of each chunk; runs the scaling pass for those that have none yet."""
        if self.mixture is None:
            return [None] * len(chunks)
        if self.classifier is None:
            return [self._weights_of(chunk.sequence) if chunk.sequence.state.weights else None for chunk in chunks]
        missing = [chunk for chunk in chunks if not self._has_scalings(chunk)]
        predicted = dict(zip(map(id, missing), self._scaling_pass(missing), strict=True)) if missing else {}
        result: list[Tensor | None] = []
        for chunk in chunks:
            state = _xlora(chunk.sequence)
            if id(chunk) in predicted:
                scalings = predicted[id(chunk)]
                gained = scalings * self._weights_of(chunk.sequence)
            else:
                scalings = self._known(state)[None].expand(chunk.length, -1, -1)
                gained = self._row(chunk.sequence)
            state.ready = None
            self._freeze(chunk, scalings)
            if chunk.sequence.want_scalings:
                chunk.sequence.scalings.append(gained.expand(chunk.length, -1, -1))
            result.append(gained)
        return result

    def _row(self, sequence: Sequence) -> Tensor:
        """The scalings of its next token, which are known, times the weights: float32 [1, layers, adapters]. The same
        tensor as long as they are the same.
        """
        state, key = _xlora(sequence), sequence.state.key
        known = self._known(state)
        if state.row is None or state.row_of is not known or state.row_key != key:
            state.row, state.row_of, state.row_key = known[None] * self._weights_of(sequence), known, key
        return state.row

    @staticmethod
    def _known(state: XLoraState) -> Tensor:
        known = state.ready if state.frozen is None else state.frozen
        assert known is not None
        return known

    def _has_scalings(self, chunk: Chunk) -> bool:
        state = _xlora(chunk.sequence)
        return state.frozen is not None or (state.ready is not None and chunk.length == 1)

    def _scaling_pass(self, chunks: Many[Chunk]) -> list[Tensor]:
        """Scaling rows of whole chunks: float32 [length, layers, adapters] each. The last row's guess is kept."""
        assert self.classifier is not None
        rows = [self._rows(chunk, 1, self._scaling_pass_scalings()) for chunk in chunks]
        every = range(len(rows))
        passed = self._pass(rows, every if self.lookahead else (), every, self._all_active())
        assert passed.scalings is not None
        if self.lookahead:
            for chunk, guess in zip(chunks, passed.best.tolist(), strict=True):
                _xlora(chunk.sequence).guess = max(guess, 0)
        return list(torch.split(passed.scalings, [chunk.length for chunk in chunks]))

    def _scaling_pass_scalings(self) -> Tensor | None:
        assert self.classifier is not None
        value = self.classifier.config.scaling_pass_value
        if value == 0:
            return None
        return torch.full((1, 1, self.classifier.adapters), value, device=self.decoder.device)

    def _may_guess(self, chunk: Chunk) -> bool:
        state = chunk.sequence.xlora
        return (
            self.lookahead
            and state is not None
            and state.frozen is None
            and state.guess is not None
            and state.right >= GUESS_WORTH
            and _reaches_end(chunk)
        )

    def _guess_row(self, chunk: Chunk) -> _Rows:
        state = _xlora(chunk.sequence)
        assert state.guess is not None
        start = chunk.start + chunk.length
        return _Rows([state.guess], start, self._slot(chunk.sequence, 1), self._scaling_pass_scalings())

    def _freeze(self, chunk: Chunk, scalings: Tensor) -> None:
        """Non-granular scalings: from completion token `tgt_non_granular_index` on, those of the token before it are
        kept.
        """
        state, sequence = _xlora(chunk.sequence), chunk.sequence
        if self.tgt_non_granular_index is None or state.frozen is not None:
            return
        if chunk.start + chunk.length - sequence.prompt_length >= self.tgt_non_granular_index:
            state.frozen = scalings[-1].clone()
            state.frozen_at = chunk.start + chunk.length
            state.guess = None

    def _weights_of(self, sequence: Sequence) -> Tensor:
        """float32 [1, 1, adapters]: the weights of LoRA, or what X-LoRA's scalings are multiplied by."""
        assert self.mixture is not None
        state = sequence.state
        if state.key not in self._weights:
            if len(self._weights) >= WEIGHTS_KEPT:
                self._weights.clear()
            values = [state.weights.get(adapter.name, 0.0) for adapter in self.mixture.adapters]
            self._weights[state.key] = torch.tensor(values, device=self.decoder.device)[None, None]
        return self._weights[state.key]

    def forget(self) -> None:
        """Let go of the cache and what reads it."""
        self.cache.clear()
        self._started = self._replayed = None
        if self._graphs is not None:
            self._graphs.clear()

    def adapters_changed(self) -> None:
        """The mixture has other adapters now: let go of what was made for the old ones."""
        self._weights.clear()
        self._uniform = None
        self._started = self._replayed = None
        if self._graphs is not None:
            self._graphs.clear()

    # --- forward passes -----------------------------------------------------------------------------------------------

    def _pass(self, rows: Many[_Rows], asked: Many[int], classified: Many[int], active: tuple[int, ...]) -> _Pass:
        """Compute parts of sequences.

        Args:
            asked: numbers of the parts whose last row's logits are wanted.
            classified: numbers of the parts that the classifier reads.
            active: places of the adapters that any row uses.
        """
        if self._graphs is not None and all(len(part.tokens) == 1 for part in rows):
            return self._replay(self._graphs, rows, asked, classified)
        if self._kernels is None:
            return self._compute(rows, asked, classified, active)
        with kernels.used(self._kernels), one_thread():
            return self._compute(rows, asked, classified, active)

    def _compute(self, rows: Many[_Rows], asked: Many[int], classified: Many[int], active: tuple[int, ...]) -> _Pass:
        """The same without a graph."""
        hidden = self._forward(rows, active)
        starts = [0]
        for part in rows:
            starts.append(starts[-1] + len(part.tokens))
        scalings = None
        if classified and self.classifier is not None:
            wanted = [hidden[starts[number] : starts[number + 1]] for number in classified]
            scalings = self.classifier(hidden if len(wanted) == len(rows) else torch.cat(wanted))
        ends = [starts[number + 1] - 1 for number in asked]
        if not ends:
            nothing = hidden.new_empty((0, 0), dtype=torch.float32)
            return _Pass(nothing, nothing.new_empty(0, dtype=torch.int64), scalings)
        logits = self._logits(rows, hidden[ends], ends, active)
        return _Pass(logits, likeliest(logits), scalings)

    def _replay(self, graphs: DecodeGraphs, rows: Many[_Rows], asked: Many[int], classified: Many[int]) -> _Pass:
        """The same by a captured graph, for parts of one row each."""
        most = kernels.MAX_ROWS
        if len(rows) > most:  # X-LoRA has two rows a sequence
            first = self._replay(graphs, rows[:most], *_within(asked, classified, 0, most)).kept()
            rest = _within(asked, classified, most, len(rows))
            return first.joined(self._replay(graphs, rows[most:], *rest))
        adapted = any(part.scalings is not None for part in rows)
        graph = graphs.graph(len(rows), adapted=adapted)
        graph.run(
            [part.tokens[0] for part in rows],
            [part.start for part in rows],
            [part.slot for part in rows],
            [part.scalings for part in rows],
        )
        # the next replay writes over these: logits are read before that, scalings wait for the step after
        predicted = graph.predicted
        scalings = _chosen(predicted, classified).clone() if predicted is not None and classified else None
        return _Pass(_chosen(graph.logits, asked), _chosen(graph.best, asked), scalings, graph)

    def _forward(self, rows: Many[_Rows], active: tuple[int, ...]) -> Tensor:
        """Hidden states [rows, hidden] after the final norm."""
        device = self.decoder.device
        segments: list[Segment] = []
        tokens: list[int] = []
        positions: list[int] = []
        for part in rows:
            segments.append(Segment(part.slot, len(tokens), len(part.tokens), part.start))
            positions.extend(range(part.start, part.start + len(part.tokens)))
            tokens.extend(part.tokens)
        delta = self._delta([part.scalings for part in rows], [len(part.tokens) for part in rows], active)
        batch = Batch(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), tuple(segments), delta
        )
        return self.decoder.forward(batch, self.cache)

    def _logits(self, rows: Many[_Rows], hidden: Tensor, chosen: Many[int], active: tuple[int, ...]) -> Tensor:
        """float32 [chosen, vocab]; `chosen` are row numbers of the pass that `hidden` [chosen, hidden] came from."""
        by_row = [part.scalings for part in rows for _ in part.tokens]
        offsets = [offset for part in rows for offset in range(len(part.tokens))]
        scalings = [_row_of(by_row[row], offsets[row]) for row in chosen]
        return self.decoder.logits(hidden, self._delta(scalings, [1] * len(chosen), active))

    def _delta(self, scalings: Many[Tensor | None], lengths: Many[int], active: tuple[int, ...]) -> MixtureDelta | None:
        """The mixture for parts of these lengths. Parts that all share one row of weights share one delta, kept for the
        next step.
        """
        given = [part for part in scalings if part is not None]
        if self.mixture is None or not given:
            return None
        shared = given[0]
        if shared.shape[0] == 1 and len(given) == len(scalings) and all(part is shared for part in given):
            if self._uniform is None or self._uniform[0] is not shared or self._uniform[1] != active:
                self._uniform = (shared, active, self.mixture.delta(shared, active))
            return self._uniform[2]
        layers = max(part.shape[1] for part in given)
        adapters = len(self.mixture.adapters)
        rows = [
            torch.zeros(length, layers, adapters, device=self.decoder.device)
            if part is None
            else part.expand(length, layers, -1)
            for part, length in zip(scalings, lengths, strict=True)
        ]
        return self.mixture.delta(torch.cat(rows), active)

    def _all_active(self) -> tuple[int, ...]:
        return tuple(range(len(self.mixture.adapters))) if self.mixture is not None else ()

    def _active(self, sequences: Many[Sequence]) -> tuple[int, ...]:
        """Places of the adapters that any of the sequences uses; known without looking at a tensor, so nothing waits
        for the device.
        """
        if self.mixture is None:
            return ()
        if self.classifier is not None and self.classifier.config.scaling_pass_value != 0:
            return self._all_active()
        return tuple(
            place
            for place, adapter in enumerate(self.mixture.adapters)
            if any(sequence.state.weights.get(adapter.name, 0.0) != 0 for sequence in sequences)
        )


def _chosen(rows: Tensor, numbers: Many[int]) -> Tensor:
    """Some rows; a view where they lie together."""
    if not numbers:
        return rows[:0]
    first, last = numbers[0], numbers[-1] + 1
    return rows[first:last] if last - first == len(numbers) else rows[list(numbers)]


def _within(asked: Many[int], classified: Many[int], first: int, last: int) -> tuple[list[int], list[int]]:
    """Those numbers that lie from `first` to before `last`, counted from there."""
    asked_here, classified_here = (
        [number - first for number in numbers if first <= number < last] for numbers in (asked, classified)
    )
    return asked_here, classified_here


def _row_of(scalings: Tensor | None, offset: int) -> Tensor | None:
    if scalings is None:
        return None
    row = offset if scalings.shape[0] > 1 else 0
    return scalings[row : row + 1]


def _reaches_end(chunk: Chunk) -> bool:
    return chunk.start + chunk.length == len(chunk.sequence.tokens)


def _xlora(sequence: Sequence) -> XLoraState:
    assert sequence.xlora is not None
    return sequence.xlora
