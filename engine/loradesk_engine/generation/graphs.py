"""Decoding on CUDA as captured graphs: one launch for each step instead of hundreds.

Everything that differs from step to step is read on the device (tokens, positions, slots, scalings), so switching or
weighting an adapter changes a tensor and captures nothing again. There is one graph for each number of rows, rounded up
to a power of two. A larger cache or other adapters capture them again, which takes about as long as one step without
graphs.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.mixture import Mixture, MixtureDelta
from loradesk_engine.generation.guesses import MOST_GUESSES
from loradesk_engine.model import kernels
from loradesk_engine.model.batch import Batch
from loradesk_engine.model.cache import KVCache
from loradesk_engine.model.decoder import Decoder

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

TOKENS, POSITIONS, COLUMNS, SLOTS = range(4)  # rows of a graph's input tensor
_capturing = threading.Lock()
_WRITTEN_BY_DEVICE = torch.empty(0)  # stands for scalings that the device has written into a row itself


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """One capture at a time, and no garbage collection during it: collecting an earlier engine frees its memory and
    graphs, which aborts the capture.
    """
    with _capturing:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


class DecodeGraph:
    """One decoding step of a fixed number of rows. Each replay overwrites the results of the one before it.

    Attributes:
        logits: float32 [rows, vocab].
        best: the most likely tokens, best first, int64 [rows, MOST_GUESSES].
        predicted: the classifier's scalings for these rows, float32 [rows, layers, adapters]; None without a
            classifier.

    Args:
        adapted: whether the graph includes the mixture; its adapters may all be inactive.
        pool: memory shared by graphs that never run at the same time.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        mixture: Mixture | None,
        classifier: Classifier | None,
        rows: int,
        *,
        adapted: bool,
        pool: _POOL_HANDLE,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._mixture = mixture if adapted else None
        self._classifier = classifier
        self._inputs = torch.zeros((SLOTS + 1, rows), dtype=torch.int64, device=decoder.device)
        self._scalings: Tensor | None = None
        if self._mixture is not None:
            layers = classifier.layers if classifier is not None else 1
            self._scalings = torch.zeros((rows, layers, len(self._mixture.adapters)), device=decoder.device)
        self._held: list[Tensor | None] = [None] * rows  # contents of the rows of `_scalings`
        self._delta: MixtureDelta | None = None
        self._pool = pool
        self._addresses: Tensor | None = None  # addresses of the cache's tensors
        self._graph: torch.cuda.CUDAGraph | None = None
        step = kernels.step_kernels(decoder.device, decoder.dtype)
        assert step is not None, "graphs need the Triton kernels"
        self._kernels = step
        self.logits: Tensor
        self.best: Tensor
        self.predicted: Tensor | None

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture the step. The warm-up computes the current inputs, so they must be valid."""
        stream = torch.cuda.Stream(self._decoder.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._decoder.device))
        # The first run compiles the kernels and initializes libraries, which a capture cannot do.
        with torch.cuda.stream(stream), kernels.used(self._kernels):
            self._compute()
        torch.cuda.current_stream(self._decoder.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may load a model meanwhile; its allocations are not part of this capture.
        capture = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with _undisturbed(), capture, kernels.used(self._kernels):
            self.logits, self.best, self.predicted = self._compute()
        self._tables = (
            self._decoder.rope_tables
        )  # kept alive: another engine of this base may replace them by longer ones
        return graph

    def _compute(self) -> tuple[Tensor, Tensor, Tensor | None]:
        from loradesk_engine.model.kernels.ranking import ranked

        delta = None
        if self._mixture is not None and self._scalings is not None:
            delta = self._mixture.delta(self._scalings, range(len(self._mixture.adapters)))
            self._delta = delta  # kept alive: every replay reads its tensors
        tokens, positions, columns, slots = self._inputs.unbind()
        batch = Batch(tokens, positions, (), delta, slots, columns)
        hidden = self._decoder.forward(batch, self._cache)
        logits = self._decoder.logits(hidden, delta).contiguous()
        predicted = self._classifier(hidden).contiguous() if self._classifier is not None else None
        return logits, ranked(logits, MOST_GUESSES), predicted

    def run(
        self,
        tokens: list[int],
        positions: list[int],
        columns: list[int],
        slots: list[int],
        scalings: Sequence[Tensor | None],
    ) -> None:
        """Compute rows, at most as many as the graph has; unused rows repeat the first one, which is harmless.

        tokens, positions, columns, slots: see `Batch`.
        scalings: for each row, float32 [1, layers or 1, adapters], or None for the base model. A tensor object that is
            passed again must be unchanged.
        """
        spare = self._inputs.shape[1] - len(tokens)
        inputs = [given + given[:1] * spare for given in (tokens, positions, columns, slots)]
        self._inputs.copy_(torch.tensor(inputs, pin_memory=True), non_blocking=True)
        if self._scalings is not None:
            for row, wanted in enumerate([*scalings, *[scalings[0]] * spare]):
                if wanted is self._held[row]:
                    continue
                if wanted is None:
                    self._scalings[row].zero_()
                else:
                    self._scalings[row].copy_(wanted[0])
                self._held[row] = wanted
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def advance(self, tokens: Sequence[Tensor]) -> None:
        """Compute the next position of the same rows, with tokens that are still on the device: int64 [] each."""
        assert self._graph is not None
        drawn = torch.stack(list(tokens)).clamp_(min=0)
        self._inputs[TOKENS, : len(drawn)].copy_(drawn)
        self._inputs[TOKENS, len(drawn) :].copy_(drawn[:1])
        self._inputs[POSITIONS : COLUMNS + 1].add_(1)
        self._graph.replay()

    def follow(self, tokens: Sequence[Tensor | None], guesses: int, weights: Tensor) -> None:
        """Compute X-LoRA's next step, with tokens that are still on the device; see `kernels.following`.

        Args:
            tokens: the sampled token of each sequence, int64 []; None if no guess was right in the last step, so that
                no token was sampled in this one.
            guesses: scaling rows of each sequence.
            weights: the adapter weights that scalings are multiplied by, float32 [sequences, adapters].
        """
        from loradesk_engine.model.kernels.following import addresses, follow, keep_columns

        assert self._graph is not None
        assert self._scalings is not None
        assert self.predicted is not None
        sequences = len(tokens)
        known = self._inputs[
            TOKENS, sequences : sequences * (1 + guesses) : guesses
        ]  # tokens of the first scaling rows
        drawn = torch.stack([known[number] if token is None else token for number, token in enumerate(tokens)])
        drawn.clamp_(min=0)
        if guesses > 1:
            if self._addresses is None:
                self._addresses = addresses([*self._cache.keys, *self._cache.values])
            keep_columns(self._inputs, drawn, guesses, self._addresses, self._cache.keys[0])
        follow(self._inputs, drawn, guesses, self.best, self.predicted, weights, self._scalings)
        self._held[:sequences] = [_WRITTEN_BY_DEVICE] * sequences
        self._graph.replay()


class DecodeGraphs:
    """The graphs of a model and its cache, captured when they are first needed."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, mixture: Mixture | None, classifier: Classifier | None
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._mixture = mixture
        self._classifier = classifier
        self._graphs: dict[tuple[int, bool], DecodeGraph] = {}
        self._cache_size = (0, 0)
        self._pool = torch.cuda.graph_pool_handle()

    @staticmethod
    def usable(decoder: Decoder) -> bool:
        """Whether this model's steps can be captured. The host must read tensors to route the rows of a mixture of
        experts, and to find the outliers of LLM.int8().
        """
        bnb = decoder.config.bnb
        outliers = bnb is not None and bnb.kind == "int8" and bnb.threshold > 0
        return kernels.usable(decoder.device) and not decoder.config.experts and not outliers

    def graph(self, rows: int, *, adapted: bool) -> DecodeGraph:
        """The graph for this many rows, 1 to `kernels.MAX_ROWS`."""
        size = (self._cache.slots, self._cache.capacity)
        if size != self._cache_size:  # the cache has moved
            self.clear()
            self._cache_size = size
            self._decoder.reserve(self._cache.capacity)
        key = (1 << (rows - 1).bit_length(), adapted)
        if key not in self._graphs:
            self._graphs[key] = DecodeGraph(
                self._decoder,
                self._cache,
                self._mixture,
                self._classifier,
                key[0],
                adapted=adapted,
                pool=self._pool,
            )
        return self._graphs[key]

    def clear(self) -> None:
        """Drop all graphs, because the cache has moved or the mixture has other adapters."""
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()  # the old pool is freed with its last graph
