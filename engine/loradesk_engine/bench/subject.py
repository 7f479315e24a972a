"""What is measured: a shape with random weights, or a model on disk. Both give an engine as a user would have it."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch

from loradesk_engine.adapters.classifier import Classifier
from loradesk_engine.adapters.load import LoadedAdapters
from loradesk_engine.adapters.mixture import Mixture
from loradesk_engine.bench.config_json import config_json
from loradesk_engine.bench.plan import Plan, Work
from loradesk_engine.bench.random_adapters import (
    LOUD,
    QUIET,
    RandomAdapter,
    adapter_layout,
    adapter_name,
    write_adapter,
    write_classifier,
    write_flat,
    write_xlora,
)
from loradesk_engine.bench.shapes import RandomWeights, shape_config, tensor_shapes
from loradesk_engine.commands import AdapterSource, LoadSettings
from loradesk_engine.formats.config import ModelConfig, parse_config
from loradesk_engine.formats.tokenizer import Tokenizer
from loradesk_engine.formats.xlora import read_xlora
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.generation.loading import LoadedBase
from loradesk_engine.model.base import read_base
from loradesk_engine.model.build import build_decoder
from loradesk_engine.model.decoder import Decoder
from loradesk_engine.model.device import DTYPES, choose_device
from loradesk_engine.ordering.modules import number_layers

DType = Literal["auto", "float32", "bfloat16", "float16"]
FROZEN_AFTER = 1  # completion tokens


class Subject(ABC):
    """A model to measure, and random adapters for it.

    Attributes:
        name: for the report.
        path: of a model on disk; None for a shape.
        hf_config: config.json.
        context: tokens that the engine's sequences may hold.
        layout: of the random adapters.

    Args:
        sizes: path -> (in, out) of the linears, in registration order.
        folder: for the adapters' files, which are written when somebody wants them.
    """

    path: Path | None = None

    def __init__(
        self,
        name: str,
        hf_config: Mapping[str, Any],
        config: ModelConfig,
        sizes: Mapping[str, tuple[int, int]],
        plan: Plan,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.hf_config = hf_config
        self.config = config
        self.plan = plan
        self.device = device
        self.dtype = dtype
        self.context = min(plan.reach, config.context)
        self.layout = adapter_layout(sizes, plan.targets, plan.rank, device, dtype)
        self._folder = folder

    @abstractmethod
    def prepare(self, work: Work) -> None:
        """Write what `engine` reads, so that the writing is not timed."""

    @abstractmethod
    def engine(self, work: Work) -> EngineCore:
        """An engine with the adapters that the work needs, all of them active."""

    def lora_folder(self, number: int) -> Path:
        """A random LoRA adapter as a PEFT folder."""
        folder = self._folder / "lora" / adapter_name(number)
        return folder if folder.exists() else write_adapter(self.layout, number, LOUD, folder)

    def xlora_folder(self) -> Path:
        """The random X-LoRA as a folder with `ordering.json`."""
        folder = self._folder / "xlora"
        if folder.exists():
            return folder
        return write_xlora(self.layout, self.plan.xlora_adapters, self.config.hidden_size, self._base_id, folder)

    def flat_folder(self, work: Work) -> Path:
        """The work's adapters as mistral.rs 0.3 reads them; see `write_flat`."""
        if work.mode == "xlora":
            adapters = sorted(path for path in self.xlora_folder().iterdir() if path.is_dir())
        else:
            adapters = [self.lora_folder(number) for number in range(self.plan.adapters_of(work))]
        folder = self._folder / f"flat-{work.mode}-{len(adapters)}"
        base = str(self.tokenizer_folder())
        return folder if folder.exists() else write_flat(adapters, self.layout, base, folder)

    def tokenizer_folder(self) -> Path:
        """The model's configuration and tokenizer as a Hugging Face folder: mistral.rs 0.3 wants one beside GGUF."""
        assert self.path is not None
        folder = self._folder / "tokenizer"
        if not folder.exists():
            folder.mkdir()
            backend = json.loads(read_base(self.path).tokenizer()._backend.to_str())
            if "merges" in backend["model"]:  # pairs today, words with a space between when mistral.rs 0.3 was made
                backend["model"]["merges"] = [" ".join(pair) for pair in backend["model"]["merges"]]
            (folder / "tokenizer.json").write_text(json.dumps(backend), encoding="utf-8")
            (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
            (folder / "config.json").write_text(json.dumps(dict(self.hf_config)), encoding="utf-8")
        return folder

    @property
    def _base_id(self) -> str:
        return str(self.path or self.name)

    @property
    def sequences(self) -> int:
        """How many the engine may run at once."""
        return max(self.plan.batch_sizes)


class ShapeSubject(Subject):
    """A shape by name with random weights, drawn on the device."""

    def __init__(self, shape: str, plan: Plan, folder: Path, device: str, dtype: DType) -> None:
        hf_config = shape_config(shape)
        config = parse_config(hf_config, shape)
        shapes = tensor_shapes(hf_config)
        sizes = {
            path: (shapes[f"{path}.weight"][1], shapes[f"{path}.weight"][0])
            for path in config.linear_paths
            if f"{path}.weight" in shapes  # not a tied output layer
        }
        chosen = choose_device(device)
        automatic = torch.float32 if chosen.type == "cpu" else torch.bfloat16
        super().__init__(shape, hf_config, config, sizes, plan, folder, chosen, DTYPES.get(dtype, automatic))

    def prepare(self, work: Work) -> None:
        if work.mode == "xlora" and not self._classifier_folder.exists():
            count = self.plan.adapters_of(work)
            write_classifier(self.layout, count, self.config.hidden_size, self.name, self._classifier_folder)

    def engine(self, work: Work) -> EngineCore:
        self.prepare(work)
        decoder = build_decoder(
            self.config,
            RandomWeights(self.hf_config, self.device, self.dtype),
            Path(self.name),
            device=self.device,
            dtype=self.dtype,
            context=self.context,
        )
        engine = EngineCore(
            LoadedBase((self.name,), decoder, _plain_tokenizer(self.config.vocab_size)),
            None if work.mode == "none" else self._adapters(work, decoder),
            LoadSettings(base=self.name, mode=work.mode, tgt_non_granular_index=_frozen_after(work)),
            self.context,
            lookahead=work.lookahead,
            max_sequences=self.sequences,
        )
        engine.enter_thread()
        engine.prepare()
        return engine

    def _adapters(self, work: Work, decoder: Decoder) -> LoadedAdapters:
        mixture = Mixture(decoder.projections, self.device, self.dtype)
        count = self.plan.adapters_of(work)
        effect = QUIET if work.mode == "xlora" else LOUD
        for number in range(count):
            mixture.add(adapter_name(number), RandomAdapter(self.layout, number, effect), "random")
        paths = mixture.adapted_paths()
        mixture.set_layers(number_layers(paths))
        classifier = None
        if work.mode == "xlora":
            classifier = Classifier(
                read_xlora(self._classifier_folder),
                hidden_size=self.config.hidden_size,
                layers=len(paths),
                adapters=count,
                device=self.device,
                dtype=self.dtype,
            )
        return LoadedAdapters(mixture, classifier, {adapter.name: 1.0 for adapter in mixture.adapters}, paths, ())

    @property
    def _classifier_folder(self) -> Path:
        return self._folder / "classifier"


class DiskSubject(Subject):
    """A model folder or GGUF file, loaded as every user loads it, with random adapters from files.

    Raises:
        LoradeskError: it cannot be loaded.
    """

    def __init__(self, path: Path, plan: Plan, folder: Path, device: str, dtype: DType) -> None:
        source = read_base(path)
        self._settings = LoadSettings(
            base=str(path), device=device, dtype=dtype, context=min(plan.reach, source.config.context)
        )
        self.path = path
        decoder = EngineCore.load(self._settings).decoder  # also brings the file into memory, for every contender
        sizes = {linear.path: (linear.in_features, linear.out_features) for linear in decoder.linears}
        super().__init__(
            path.name, config_json(source.config), source.config, sizes, plan, folder, decoder.device, decoder.dtype
        )

    def prepare(self, work: Work) -> None:
        if work.mode == "lora":
            for number in range(self.plan.adapters_of(work)):
                self.lora_folder(number)
        elif work.mode == "xlora":
            self.xlora_folder()

    def engine(self, work: Work) -> EngineCore:
        settings = replace(self._settings, mode=work.mode, tgt_non_granular_index=_frozen_after(work))
        if work.mode == "lora":
            numbers = range(self.plan.adapters_of(work))
            sources = tuple(AdapterSource(adapter_name(number), str(self.lora_folder(number))) for number in numbers)
            settings = replace(settings, adapters=sources)
        elif work.mode == "xlora":
            folder = self.xlora_folder()
            settings = replace(settings, xlora=str(folder), ordering=str(folder / "ordering.json"))
        engine = EngineCore.load(settings, lookahead=work.lookahead, max_sequences=self.sequences)
        engine.activate({adapter.name: 1.0 for adapter in engine.adapters})
        return engine


def _frozen_after(work: Work) -> int | None:
    return FROZEN_AFTER if work.non_granular else None


def _plain_tokenizer(vocabulary: int) -> Tokenizer:
    """A real tokenizer with one word for each id, so that answers are decoded as in use."""
    words = {f"w{number}": number for number in range(vocabulary)}
    return Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")), None, "")
