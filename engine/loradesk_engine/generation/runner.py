"""Turns chunks into forward passes: the batch, the mixture, and X-LoRA's scaling rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture, MixtureDelta
from loradesk_engine.generation.graphs import DecodeGraph, DecodeGraphs
from loradesk_engine.generation.guesses import (
    GRAPH_ROW_COST,
    MOST_GUESSES,
    ROW_COST,
    after_token,
    worthwhile,
)
from loradesk_engine.generation.sampling import ranked
from loradesk_engine.generation.scheduler import Chunk
from loradesk_engine.generation.sequence import Sequence, XLoraState
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.device import SMALL_MODEL, one_thread

LISTEN_EVERY = 4  # tokens, while no guess is checked
GRAPH_TOKENS = 2  # times the rows of the largest graph: prompts of no more tokens are computed by graphs
GRAPH_READS = 2**18  # keys that their rows may read in all: each row reads the history for itself
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
        logits, best: of the last rows of the parts that were asked for, float32 [asked, vocab] and their likeliest
            tokens, best first, int64 [asked, guesses].
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


_Key = tuple[int, int, int, object]


def _key(chunk: Chunk) -> _Key:
    """Equal for chunks that a pass computes alike: the adapter state and the tokens before it make the scalings."""
    return (id(chunk.sequence), chunk.start, chunk.length, chunk.sequence.state.key)


@dataclass(frozen=True)
class _Step:
    """A forward pass and what it was for.

    Attributes:
        chunks: those it has generation rows of.
        rows: which row of the logits is each chunk's, where it reaches the end of its sequence.
        ahead: which of the classified rows are a sequence's scaling rows.
        passed: with the logits of those chunks, then those of the scaling rows.
        guesses: scaling rows of each sequence where the step is level: a generation row and as many scaling rows of
            every one, all of decoding sequences. Those that are behind have a generation row of no use.
    """

    chunks: Many[Chunk]
    rows: Mapping[_Key, int | None]
    ahead: Mapping[Sequence, slice]
    passed: _Pass
    guesses: int = 0

    @classmethod
    def level(cls, chunks: Many[Chunk], guesses: int, passed: _Pass) -> _Step:
        """One with a row of each chunk, then `guesses` scaling rows of each; none of what is not X-LoRA's."""
        return cls(
            chunks,
            {_key(chunk): row for row, chunk in enumerate(chunks)},
            {chunk.sequence: slice(n * guesses, (n + 1) * guesses) for n, chunk in enumerate(chunks) if guesses},
            passed,
            guesses,
        )

    @property
    def sequences(self) -> set[Sequence]:
        return {chunk.sequence for chunk in self.chunks}

    def covers(self, chunks: Many[Chunk], behind: Many[Chunk]) -> bool:
        """Whether it has computed these chunks, and the scaling rows of those behind."""
        computed = all(_key(chunk) in self.rows for chunk in (*chunks, *behind))
        return computed and all(chunk.sequence in self.ahead for chunk in behind)

    def prediction(self, chunk: Chunk) -> Prediction | None:
        row = self.rows[_key(chunk)]
        return None if row is None else Prediction(self.passed.logits[row], self.passed.best[row, 0])

    def looked_ahead(self, sequence: Sequence) -> tuple[Tensor, Tensor]:
        """Of a sequence's scaling rows: scalings, float32 [guesses, layers, adapters], and the likeliest tokens after
        them, int64 [guesses, guesses].
        """
        assert self.passed.scalings is not None
        best = self.passed.best[len(self.passed.best) - len(self.passed.scalings) :]
        return self.passed.scalings[self.ahead[sequence]], best[self.ahead[sequence]]


@dataclass(frozen=True)
class _Rows:
    """Rows of one sequence in a forward pass: tokens from position `start`, their cache slot and their scalings.

    scalings: float32 [length or 1, layers or 1, adapters], or None for the base model.
    beyond: by how much their columns in the cache are beyond their positions.
    """

    tokens: Many[int]
    start: int
    slot: int
    scalings: Tensor | None
    beyond: int = 0

    def single(self) -> list[_Rows]:
        """The same as parts of one row."""
        return [
            _Rows([token], self.start + offset, self.slot, _row_of(self.scalings, offset), self.beyond)
            for offset, token in enumerate(self.tokens)
        ]


class Runner:
    """Runs the model for the scheduler.

    A sequence has one cache slot, or two in X-LoRA mode: one for the generation rows (adapted activations), one for the
    scaling rows (activations of the scaling pass). Both are exact, so nothing is ever computed again.

    Look-ahead: when token x[t] is known, its scaling row has run, and that row's own logits are the base model's guess
    of x[t+1]. A forward pass has the generation row of x[t], and the scaling row of the guess beside it. If the
    sampled token equals the guess, its scalings are ready; else its scaling row runs by itself. Only the scalings'
    computation is speculative: the output is the same for any sampling. Guess rows that are wrong cost time, so there
    are as many as are worth it (`generation.guesses`): none while the base's guesses are mostly wrong, on a GPU up to
    three, the likeliest tokens, each with a column of its own in the cache. What the base holds likely stays known from
    the scaling rows, and so is when its guesses become right again. Where other sequences decode beside it, the row of
    a wrong guess's true token rides in their pass and the sequence itself comes with the next one, so nobody waits for
    somebody else's wrong guess.

    On CUDA the next step of sequences that decode starts as soon as their tokens are drawn, before the host has read
    them: what the host does with a token costs no time then. In X-LoRA mode the device itself sees which guess was
    right: that sequence's next step is its generation row and new guesses, and that of a sequence without a right guess
    is the scaling row of its token. A request that comes waits for that step, since the device is at it anyway; if it
    turns out to be another one (an adapter was switched), it is thrown away.

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
        self._guesses = 0  # that are checked for each sequence
        self._looked_ahead: list[tuple[Sequence, Tensor]] = []  # best tokens that were not read from the device yet
        self._behind: list[Chunk] = []  # whose scaling rows ride in the next pass
        self._joined = False  # others come with the next step
        self._drawn_for: list[Sequence] = []  # whose tokens are read next
        self._replayed: _Step | None = None  # the step that tokens are drawn from now, if the next one can be started
        self._started: _Step | None = None  # the step after it, if it was started already
        self._under_way: _Step | None = None  # that step, once `begin` has seen that it is the wanted one
        self._graphs: DecodeGraphs | None = None
        self._kernels: kernels.StepKernels | None = None  # for all passes on the CPU
        if DecodeGraphs.usable(decoder):
            self._graphs = DecodeGraphs(decoder, self.cache, mixture, classifier)
        elif decoder.device.type == "cpu" and (decoder.native or decoder.parameters < SMALL_MODEL):
            # (else torch does the products on its own threads, and those of the kernels would get in their way)
            self._kernels = kernels.step_kernels(decoder.device, decoder.dtype)

    @torch.inference_mode()
    def prepare(self, sequences: int, positions: int) -> None:
        """Make room in the cache, and compile and capture what the first tokens need, so that they do not wait for it.

        sequences, positions: what the cache has room for from the start. One that grows is copied, and its graphs are
            captured anew.
        """
        self.cache.reserve(sequences * self.slots_each, positions)
        if self._graphs is None:
            return
        for adapted in (False, True) if self.mixture is not None and self.mixture.adapters else (False,):
            for rows in (1, *_prompt_sizes()):
                self._capture(rows, adapted=adapted)
        if self.mixture is not None and self.classifier is not None and self.lookahead:
            graph = self._capture(1 + MOST_GUESSES, adapted=True)
            graph.follow([None], MOST_GUESSES, torch.zeros((1, len(self.mixture.adapters)), device=self.decoder.device))

    def _capture(self, rows: int, *, adapted: bool) -> DecodeGraph:
        assert self._graphs is not None
        graph, zeros = self._graphs.graph(rows, adapted=adapted), [0] * rows
        graph.run(zeros, zeros, list(range(rows)), zeros, [None] * rows)
        return graph

    def begin(self, chunks: Many[Chunk]) -> list[Chunk]:
        """Those of a step's chunks that `run` is to compute now. Of the others only the scaling rows run beside them,
        or run already, or nothing, because a step without them is under way; they come with the next step.
        """
        self._behind, self._joined, self._under_way = [], False, None
        started, self._started = self._started, None
        if started is not None:
            sequences = started.sequences
            known = [chunk for chunk in chunks if chunk.sequence in sequences]
            ready, missing = self._divided(known)
            if known and started.covers(ready, missing):
                self._behind, self._joined, self._under_way = missing, len(known) < len(chunks), started
                return ready
        ready, missing = self._divided(chunks)
        if missing and not (ready and all(chunk.length == 1 for chunk in missing)):
            return list(chunks)
        self._behind = missing
        return ready

    def _divided(self, chunks: Many[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """Those that can be computed, and those whose scalings are missing."""
        if self.classifier is None:
            return list(chunks), []
        missing = [chunk for chunk in chunks if not self._has_scalings(chunk)]
        return [chunk for chunk in chunks if chunk not in missing], missing

    @torch.inference_mode()
    def run(self, chunks: Many[Chunk]) -> list[Prediction | None]:
        """Compute what `begin` gave. Predicts what follows each chunk that reaches the end of its sequence."""
        self._looked_ahead.clear()
        moved = self._reserve([*chunks, *self._behind])
        started, self._under_way, self._replayed = self._under_way, None, None
        scalings = self._scalings(chunks, computed=started is not None)
        step = self._step(chunks, scalings) if started is None else started
        # (what was started before the cache moved is right, but its graph reads where the cache was)
        if step.passed.graph is not None and not (moved and step is started) and self._can_follow(step, chunks):
            self._replayed = step
        for chunk in (*chunks, *self._behind):
            if chunk.sequence in step.ahead:
                state = _xlora(chunk.sequence)
                state.ahead, best = step.looked_ahead(chunk.sequence)
                self._looked_ahead.append((chunk.sequence, best))
        self._drawn_for = [chunk.sequence for chunk in chunks if _reaches_end(chunk)]
        return [step.prediction(chunk) for chunk in chunks]

    def _step(self, chunks: Many[Chunk], scalings: Many[Tensor | None]) -> _Step:
        """Generation rows of chunks, and scaling rows of guesses and of the chunks behind."""
        guessed = [chunk for chunk in chunks if self._may_guess(chunk)]
        decoding = all(chunk.length == 1 and _reaches_end(chunk) for chunk in (*chunks, *self._behind))
        level = self._graphs is not None and decoding and len(guessed) == len(chunks)
        if guessed:
            self._guesses = self._worthwhile_guesses([*chunks, *self._behind] if level else guessed)
        if not self._guesses:
            guessed = []
        if level and guessed:
            return self._level_step(chunks, scalings, self._guesses)
        rows = [self._rows(chunk, 0, chunk_scalings) for chunk, chunk_scalings in zip(chunks, scalings, strict=True)]
        for chunk in guessed:
            rows += self._guess_rows(chunk, 1)  # one: other rows than graphs' have no columns of their own
        rows += [self._rows(chunk, 1, self._scaling_pass_scalings()) for chunk in self._behind]
        ahead = {chunk.sequence: slice(row, row + 1) for row, chunk in enumerate([*guessed, *self._behind])}
        asked = [number for number, chunk in enumerate(chunks) if _reaches_end(chunk)]
        places = {number: place for place, number in enumerate(asked)}
        classified = range(len(chunks), len(rows))
        passed = self._pass(rows, [*asked, *classified], classified, self._active([chunk.sequence for chunk in chunks]))
        return _Step(chunks, {_key(chunk): places.get(number) for number, chunk in enumerate(chunks)}, ahead, passed)

    def _level_step(self, chunks: Many[Chunk], scalings: Many[Tensor | None], guesses: int) -> _Step:
        """The same for chunks of decoding sequences that all have guesses, as a step that can be followed."""
        everything = [*chunks, *self._behind]
        given = [*scalings, *[None] * len(self._behind)]
        rows = [self._rows(chunk, 0, row_scalings) for chunk, row_scalings in zip(everything, given, strict=True)]
        for chunk in chunks:
            rows += self._guess_rows(chunk, guesses)
        for chunk in self._behind:
            rows += [self._rows(chunk, 1, self._scaling_pass_scalings())] * guesses
        every, ahead = range(len(rows)), range(len(everything), len(rows))
        return _Step.level(everything, guesses, self._pass(rows, every, ahead, self._all_active()))

    @torch.inference_mode()
    def read(self, tokens: Many[Tensor], *, keep_logits: bool) -> list[int]:
        """The ids of drawn tokens, each int64 [], in the order of `run`'s predictions; the one time in a step that the
        host waits for the device.

        keep_logits: somebody looks at the logits after this, so the next step must not be started yet.
        """
        drawn = [*tokens, *(best.flatten() for _, best in self._looked_ahead)]
        if not drawn:
            return []
        values = _OnItsWay(torch.hstack(drawn))
        if not keep_logits:
            self._start_next(dict(zip(self._drawn_for, tokens, strict=True)))
        numbers = values.wait()
        place = len(tokens)
        for sequence, best in self._looked_ahead:
            count, guesses = best.shape
            likely = [max(token, 0) for token in numbers[place : place + best.numel()]]
            _xlora(sequence).after = [likely[row * guesses : (row + 1) * guesses] for row in range(count)]
            place += best.numel()
        for chunk in self._behind:
            _xlora(chunk.sequence).use(0)
        self._behind = []
        return numbers[: len(tokens)]

    def _start_next(self, drawn: Mapping[Sequence, Tensor]) -> None:
        """Start the step after the one that these tokens were drawn from, if any sequence surely goes on."""
        last = self._replayed
        if last is None:
            return
        if all(_ends(chunk.sequence) and chunk.sequence in drawn for chunk in last.chunks):
            return
        chunks = [Chunk(chunk.sequence, chunk.start + (chunk.sequence in drawn), 1) for chunk in last.chunks]
        if max(chunk.start for chunk in chunks) + last.guesses >= self.cache.capacity:
            return
        graph, passed = last.passed.graph, last.passed  # what is advanced lies where the last one did
        assert graph is not None
        if last.guesses:
            passed = self._follow(graph, chunks, drawn, last.guesses)
        else:
            graph.advance([drawn[chunk.sequence] for chunk in chunks])
        self._started = _Step.level(chunks, last.guesses, passed)

    def _follow(self, graph: DecodeGraph, chunks: Many[Chunk], drawn: Mapping[Sequence, Tensor], guesses: int) -> _Pass:
        """X-LoRA's next step: a generation row of each chunk, then its scaling rows."""
        weights = torch.cat([self._weights_of(chunk.sequence)[0] for chunk in chunks])
        graph.follow([drawn.get(chunk.sequence) for chunk in chunks], guesses, weights)
        assert graph.predicted is not None
        first, last = len(chunks), len(chunks) * (1 + guesses)
        return _Pass(graph.logits[:last], graph.best[:last], graph.predicted[first:last].clone(), graph)

    def _can_follow(self, step: _Step, chunks: Many[Chunk]) -> bool:
        """Whether the step after this one can be started before its tokens are known to the host."""
        whole = len(chunks) + len(self._behind) == len(step.chunks) and all(map(_reaches_end, chunks))
        if not whole or self._joined:
            return False
        if step.guesses:
            shares = [_xlora(chunk.sequence).right for chunk in step.chunks]
            return self.tgt_non_granular_index is None and self._worthwhile(shares) == step.guesses
        if self.classifier is None:
            return True
        return not step.ahead and all(_xlora(chunk.sequence).frozen is not None for chunk in chunks)

    def accept(self, sequence: Sequence, token: int) -> None:
        """Tell the runner which token was sampled, before the next step: a right guess's scalings are ready."""
        state = sequence.xlora
        if state is None or state.frozen is not None or not state.guesses:
            return
        rank = state.guesses.index(token) if token in state.guesses else None
        state.right = after_token(state.right[: len(state.guesses)], rank)
        if state.ahead is None:
            state.guesses = ()  # no scaling row ran: the next pass makes new ones
        elif rank is not None and rank < len(state.ahead):
            if rank and self._started is None:  # (else it was moved before that step)
                column = len(sequence.tokens)
                self.cache.move(self._slot(sequence, 1), column + rank, column)
            state.hits += 1
            state.first_hits += rank == 0
            state.use(rank)
        else:
            state.misses += 1
            state.forget()

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

    def _scalings(self, chunks: Many[Chunk], *, computed: bool) -> list[Tensor | None]:
        """Scalings of the generation rows of each chunk; runs the scaling pass for those that have none yet.

        computed: the pass has them already; only what is told of them is given.
        """
        if self.mixture is None:
            return [None] * len(chunks)
        if self.classifier is None:
            return [self._weights_of(chunk.sequence) if chunk.sequence.state.weights else None for chunk in chunks]
        missing = [chunk for chunk in chunks if not self._has_scalings(chunk)]
        predicted = dict(zip(map(id, missing), self._scaling_pass(missing), strict=True)) if missing else {}
        result: list[Tensor | None] = []
        for chunk in chunks:
            state, gained = _xlora(chunk.sequence), None
            if id(chunk) in predicted:
                scalings = predicted[id(chunk)]
                gained = scalings * self._weights_of(chunk.sequence)
            else:
                scalings = self._known(state)[None].expand(chunk.length, -1, -1)
                if not computed or chunk.sequence.want_scalings:
                    gained = self._row(chunk.sequence)
            state.ready = None
            self._freeze(chunk, scalings)
            if chunk.sequence.want_scalings and gained is not None:
                chunk.sequence.scalings.append(self._told(chunk, gained.expand(chunk.length, -1, -1)))
            result.append(gained)
        return result

    @staticmethod
    def _told(chunk: Chunk, scalings: Tensor) -> Tensor:
        """A token's scalings come to the host with it: who tells of them would wait for the step after it otherwise."""
        if scalings.device.type == "cuda" and chunk.length == 1 and _reaches_end(chunk):
            return _to_host(scalings)
        return scalings

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
        """Scaling rows of whole chunks: float32 [length, layers, adapters] each. The last row's guesses are kept."""
        assert self.classifier is not None
        rows = [self._rows(chunk, 1, self._scaling_pass_scalings()) for chunk in chunks]
        listened = [number for number, chunk in enumerate(chunks) if self._listens(chunk)]
        passed = self._pass(rows, listened, range(len(rows)), self._all_active())
        assert passed.scalings is not None
        for number, best in zip(listened, passed.best.tolist(), strict=True):
            _xlora(chunks[number].sequence).guesses = [max(token, 0) for token in best]
        return list(torch.split(passed.scalings, [chunk.length for chunk in chunks]))

    def _listens(self, chunk: Chunk) -> bool:
        """Whether the guesses after a chunk's scaling rows are wanted. While none is worth checking, now and then, to
        hear when they become right: a small model spends a fifth of a pass on its logits.
        """
        return self.lookahead and (self._guesses > 0 or chunk.length > 1 or chunk.start % LISTEN_EVERY == 0)

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
            and len(state.guesses) > 0
            and _reaches_end(chunk)
        )

    def _worthwhile_guesses(self, chunks: Many[Chunk]) -> int:
        """How many guesses of each of these chunks' sequences are checked."""
        room = self.cache.capacity - max(chunk.start + chunk.length for chunk in chunks)
        return min(room, self._worthwhile([_xlora(chunk.sequence).right for chunk in chunks]))

    def _worthwhile(self, shares: Many[Many[float]]) -> int:
        most = min(self._most_guesses, kernels.MAX_ROWS // len(shares) - 1)
        cost = ROW_COST if self._graphs is None else GRAPH_ROW_COST
        return worthwhile(shares, max(1, most), cost, self._guesses)

    @property
    def _most_guesses(self) -> int:
        """Guesses of a token that are known. Only graphs' rows can have columns of their own, and are cheap."""
        return 1 if self._graphs is None else MOST_GUESSES

    def _guess_rows(self, chunk: Chunk, count: int) -> list[_Rows]:
        position, slot = chunk.start + chunk.length, self._slot(chunk.sequence, 1)
        tokens, scalings = _xlora(chunk.sequence).guesses[:count], self._scaling_pass_scalings()
        return [_Rows([token], position, slot, scalings, beyond) for beyond, token in enumerate(tokens)]

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
            state.guesses = ()

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
        self._started = self._under_way = self._replayed = None
        if self._graphs is not None:
            self._graphs.clear()

    def adapters_changed(self) -> None:
        """The mixture has other adapters now: let go of what was made for the old ones."""
        self._weights.clear()
        self._uniform = None
        self._started = self._under_way = self._replayed = None
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
        if self._graphs is not None and _suits_graphs(rows):
            return self._replay_parts(self._graphs, rows, asked, classified)
        if self._kernels is None:
            return self._compute(rows, asked, classified, active)
        with kernels.used(self._kernels), one_thread():
            return self._compute(rows, asked, classified, active)

    def _compute(self, rows: Many[_Rows], asked: Many[int], classified: Many[int], active: tuple[int, ...]) -> _Pass:
        """The same without a graph."""
        hidden = self._forward(rows, active)
        starts = _starts(rows)
        scalings = None
        if classified and self.classifier is not None:
            wanted = [hidden[starts[number] : starts[number + 1]] for number in classified]
            scalings = self.classifier(hidden if len(wanted) == len(rows) else torch.cat(wanted))
        ends = [starts[number + 1] - 1 for number in asked]
        if not ends:
            nothing = hidden.new_empty((0, 0), dtype=torch.float32)
            return _Pass(nothing, nothing.long(), scalings)
        logits = self._logits(rows, hidden[ends], ends, active)
        return _Pass(logits, ranked(logits, self._most_guesses if classified else 1), scalings)

    def _replay_parts(self, graphs: DecodeGraphs, rows: Many[_Rows], asked: Many[int], classified: Many[int]) -> _Pass:
        """The same by captured graphs. Each token is a row: those of one sequence see the earlier ones, since all keys
        and values of a layer are in the cache before any row attends.
        """
        if all(len(part.tokens) == 1 for part in rows):
            return self._replay(graphs, rows, asked, classified)
        starts = _starts(rows)
        single = [row for part in rows for row in part.single()]
        ends = [starts[number + 1] - 1 for number in asked]
        read = [row for number in classified for row in range(starts[number], starts[number + 1])]
        passed = self._replay(graphs, single, ends, read, prompts=True)
        return replace(passed, graph=None)  # its rows are not those of the next step

    def _replay(
        self,
        graphs: DecodeGraphs,
        rows: Many[_Rows],
        asked: Many[int],
        classified: Many[int],
        *,
        prompts: bool = False,
    ) -> _Pass:
        """The same for parts of one row each.

        prompts: by the graphs that are there for prompts, instead of one for so many rows.
        """
        most = kernels.MAX_ROWS
        if len(rows) > most:
            first = self._replay(graphs, rows[:most], *_within(asked, classified, 0, most)).kept()
            rest = _within(asked, classified, most, len(rows))
            return first.joined(self._replay(graphs, rows[most:], *rest, prompts=prompts))
        adapted = any(part.scalings is not None for part in rows)
        size = min(size for size in _prompt_sizes() if size >= len(rows)) if prompts else len(rows)
        graph = graphs.graph(size, adapted=adapted)
        graph.run(
            [part.tokens[0] for part in rows],
            [part.start for part in rows],
            [part.start + part.beyond for part in rows],
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
            assert not part.beyond, "only graphs' rows have columns"
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


class _OnItsWay:
    """Numbers that the host will want; what is queued on the device after them does not hold them up."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._there = tensor, None
        if tensor.device.type == "cuda":
            self._tensor = _to_host(tensor)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def wait(self) -> list[int]:
        if self._there is not None:
            self._there.synchronize()
        return self._tensor.tolist()


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the host that is complete when the host has waited for the device."""
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor, non_blocking=True)


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
    return scalings if scalings is None or scalings.shape[0] == 1 else scalings[offset : offset + 1]


def _starts(rows: Many[_Rows]) -> list[int]:
    """The first row of each part, and how many there are in all."""
    return [0, *itertools.accumulate(len(part.tokens) for part in rows)]


def _prompt_sizes() -> tuple[int, int]:
    """Rows of the graphs that prompts are computed by. Spare rows read the history too, so one size would not do."""
    return kernels.MAX_ROWS // 2, kernels.MAX_ROWS


def _suits_graphs(rows: Many[_Rows]) -> bool:
    """Whether these are rows that captured graphs are sooner done with than the host is with launching the pass."""
    prompts = [part for part in rows if len(part.tokens) > 1]
    reads = sum(len(part.tokens) * (part.start + len(part.tokens)) for part in prompts)
    return not prompts or (_starts(rows)[-1] <= GRAPH_TOKENS * kernels.MAX_ROWS and reads <= GRAPH_READS)


def _reaches_end(chunk: Chunk) -> bool:
    return chunk.start + chunk.length == len(chunk.sequence.tokens)


def _ends(sequence: Sequence) -> bool:
    """Whether one more token is its last, whatever it is."""
    return len(sequence.tokens) + 1 >= sequence.limit


def _xlora(sequence: Sequence) -> XLoraState:
    assert sequence.xlora is not None
    return sequence.xlora
