"""transformers and PEFT, in this process: the same torch, the same device and type, greedy `generate`."""

from __future__ import annotations

import contextlib
import gc
import importlib
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch

from loradesk_engine.bench.bandwidth import synchronize
from loradesk_engine.bench.contender import LeftOut
from loradesk_engine.bench.figures import Sample
from loradesk_engine.bench.memory import PeakMemory
from loradesk_engine.bench.plan import Work
from loradesk_engine.bench.prompts import Prompt
from loradesk_engine.bench.subject import Subject


class _TokenClock:
    """A streamer of `generate`: notes when each token is there. It is given the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class TransformersPeer:
    """transformers' model with its own cache.

    A GGUF file's shape is taken with random weights: transformers has no kernels for the file's types.
    """

    name = "transformers"

    def __init__(self, subject: Subject, work: Work, threads: int | None) -> None:
        self.version = _installed_version(self.name)
        self.subject = subject
        self.work = work
        self._threads = threads or psutil.cpu_count(logical=False) or 1
        self._memory: PeakMemory | None = None
        self._model: Any = None

    def load(self) -> float | None:
        self.refuse()
        self.close()
        self._memory = PeakMemory(self.subject.device)
        torch.set_num_threads(self._threads)
        started = time.perf_counter()
        with torch.inference_mode():
            self._model = self.build().eval()
        synchronize(self.subject.device)
        return time.perf_counter() - started if self._from_folder else None

    def refuse(self) -> None:
        """Raise `LeftOut` for works that this peer cannot do."""
        if self.work.mode != "none":
            raise LeftOut("transformers runs adapters through PEFT.")

    def build(self) -> Any:
        """The model on its device."""
        transformers = _imported("transformers")
        subject = self.subject
        if self._from_folder:
            model = transformers.AutoModelForCausalLM.from_pretrained(subject.path, dtype=subject.dtype)
            return model.to(subject.device)
        config = transformers.AutoConfig.for_model(**subject.hf_config)
        with _default_dtype(subject.dtype), torch.device(subject.device):
            return transformers.AutoModelForCausalLM.from_config(config)

    @property
    def _from_folder(self) -> bool:
        return self.subject.path is not None and self.subject.path.is_dir()

    def answer(self, prompt: Prompt, tokens: int) -> Sample:
        torch.set_num_threads(self._threads)
        ids = torch.tensor([prompt.ids], device=self.subject.device)
        clock = _TokenClock()
        started = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                use_cache=self.uses_cache,
                streamer=clock,
            )
        _, first, *later = clock.times
        return Sample(len(prompt.ids), 1 + len(later), first - started, later[-1] - first)

    @property
    def uses_cache(self) -> bool:
        return True

    def peak_memory(self) -> int | None:
        return self._memory.taken() if self._memory is not None else None

    def close(self) -> None:
        if self._model is not None:
            self._model = None
            gc.collect()


class PeftPeer(TransformersPeer):
    """PEFT on transformers: LoRA with all adapters active, and X-LoRA, which works without a cache only."""

    name = "peft"

    def refuse(self) -> None:
        if self.work.mode == "none":
            raise LeftOut("PEFT without an adapter is transformers.")
        if self.work.non_granular:
            raise LeftOut("PEFT has no frozen scalings.")
        if not self.work.lookahead:
            raise LeftOut("PEFT's X-LoRA stands beside look-ahead.")

    def build(self) -> Any:
        peft = _imported(self.name)
        model = super().build()
        with torch.device(self.subject.device):
            return self._xlora(peft, model) if self.work.mode == "xlora" else self._lora(peft, model)

    def _lora(self, peft: Any, model: Any) -> Any:
        layout = self.subject.layout
        config = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=layout.rank,
            lora_alpha=2 * layout.rank,
            target_modules=list(layout.sizes),
            init_lora_weights=False,  # random, so that nothing is zero
        )
        names = [f"adapter{number}" for number in range(self.subject.plan.adapters_of(self.work))]
        # adapters in the model's own type: PEFT would hold them in float32 for training, which is slower
        adapted = peft.get_peft_model(model, config, adapter_name=names[0], autocast_adapter_dtype=False)
        for name in names[1:]:
            adapted.add_adapter(name, config, autocast_adapter_dtype=False)
        adapted.base_model.set_adapter(names)
        return adapted.to(self.subject.device, self.subject.dtype)

    def _xlora(self, peft: Any, model: Any) -> Any:
        folder = self.subject.xlora_folder()
        parts = sorted(path for path in folder.iterdir() if path.is_dir())
        model.config.use_cache = False
        config = peft.XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=self.subject.config.hidden_size,
            adapters={str(number): str(path) for number, path in enumerate(parts)},  # it works with such names only
            xlora_depth=1,
            layerwise_scalings=True,
        )
        return peft.get_peft_model(model, config, autocast_adapter_dtype=False).to(
            self.subject.device, self.subject.dtype
        )

    @property
    def uses_cache(self) -> bool:
        return self.work.mode != "xlora"


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise LeftOut(f"{name} is not installed here ({problem}).") from None


def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
