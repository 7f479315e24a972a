"""Random LoRA adapters and a random X-LoRA classifier for any base, in memory and as the files that the peers read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loradesk_engine.errors import RequestError
from loradesk_engine.formats.adapter_place import CONFIG_NAME, WEIGHTS_NAME
from loradesk_engine.formats.peft import LoraModule, PeftAdapter
from loradesk_engine.ordering.modules import number_layers

LOUD = 0.05  # an adapter that changes what the model says
QUIET = 1e-6  # one that is computed in full and changes nearly nothing


@dataclass(frozen=True)
class AdapterLayout:
    """What random adapters adapt and how they are held.

    Attributes:
        sizes: path -> (in, out) of every adapted linear, in registration order.
        rank: of every adapter on every linear; alpha is twice the rank.
    """

    sizes: Mapping[str, tuple[int, int]]
    rank: int
    device: torch.device
    dtype: torch.dtype

    @property
    def targets(self) -> list[str]:
        """Last parts of the paths, as PEFT's `target_modules`."""
        return list(dict.fromkeys(path.rpartition(".")[2] for path in self.sizes))


def adapter_layout(
    sizes: Mapping[str, tuple[int, int]], targets: tuple[str, ...], rank: int, device: torch.device, dtype: torch.dtype
) -> AdapterLayout:
    """The layout on the linears whose last part is in `targets`, or on all but `lm_head` without targets.

    Args:
        sizes: path -> (in, out) of the model's linears, in registration order.

    Raises:
        RequestError: no linear has such a last part; lists those there are.
    """
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in sizes if path != "lm_head"))
    for target in targets:
        if target not in names:
            remedy = f"Choose of {', '.join(names)}, or all."
            raise RequestError(f"The model has no linear {target!r}.", field="--targets", remedy=remedy)
    chosen = targets or names
    adapted = {path: size for path, size in sizes.items() if path.rpartition(".")[2] in chosen}
    return AdapterLayout(adapted, rank, device, dtype)


def adapter_name(number: int) -> str:
    """No name is part of another: mistral.rs would take the one for the other."""
    return f"expert{number:03d}"


class RandomAdapter(PeftAdapter):
    """A LoRA adapter whose matrices are drawn on the device when they are asked for, the same for the same number.

    Args:
        effect: standard deviation of B's values: `LOUD` or `QUIET`.
    """

    def __init__(self, layout: AdapterLayout, number: int, effect: float) -> None:
        self.weights_file = Path(adapter_name(number))
        self.modules = {
            path: LoraModule(path, f"{path}.lora_A", f"{path}.lora_B", layout.rank, 2.0, *sizes)
            for path, sizes in layout.sizes.items()
        }
        self.base_copies, self.biases, self.options, self.left_out = {}, {}, (), {}
        self.base_model = None
        self._layout = layout
        self._effect = effect
        self._seeds = {path: (number + 1) * 100_000 + place for place, path in enumerate(layout.sizes)}
        self._generator = torch.Generator(layout.device)

    def missing(self, _linears: Iterable[str]) -> tuple[str, ...]:
        """None of them: it has all that it is said to have."""
        return ()

    def weights(self, module: LoraModule) -> tuple[Tensor, Tensor]:
        """A `[rank, in]` and B `[out, rank]` of a module."""
        self._generator.manual_seed(self._seeds[module.path])
        a = self._draw(module.rank, module.in_features, module.in_features**-0.5)
        return a, self._draw(module.out_features, module.rank, self._effect)

    def _draw(self, rows: int, columns: int, std: float) -> Tensor:
        empty = torch.empty(rows, columns, device=self._layout.device, dtype=self._layout.dtype)
        return empty.normal_(0.0, std, generator=self._generator)


def write_adapter(layout: AdapterLayout, number: int, effect: float, folder: Path) -> Path:
    """Save an adapter as PEFT does; returns the folder."""
    folder.mkdir(parents=True)
    adapter = RandomAdapter(layout, number, effect)
    tensors = {}
    for path, module in adapter.modules.items():
        a, b = adapter.weights(module)
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.cpu()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.cpu()
    save_file(tensors, folder / WEIGHTS_NAME)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "",
        "r": layout.rank,
        "lora_alpha": 2 * layout.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": layout.targets,
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_xlora(layout: AdapterLayout, count: int, hidden_size: int, base: str, folder: Path) -> Path:
    """Save an X-LoRA over `count` quiet adapters as xlora and mistral.rs do: classifier, an ordering file, and the
    adapters in sub-folders. Returns the folder.

    The classifier is one linear with a scaling for each layer, as in the published mistral.rs models.
    """
    write_classifier(layout, count, hidden_size, base, folder)
    for number in range(count):
        write_adapter(layout, number, QUIET, folder / adapter_name(number))
    write_ordering(layout, count, base, folder / "ordering.json")
    return folder


def write_ordering(layout: AdapterLayout, count: int, base: str, file: Path) -> Path:
    """Save an ordering file with the first `count` adapters; returns it."""
    ordering = {
        "order": [adapter_name(number) for number in range(count)],
        "layers": number_layers(layout.sizes),
        "base_model_id": base,
    }
    file.write_text(json.dumps(ordering), encoding="utf-8")
    return file


def write_classifier(layout: AdapterLayout, count: int, hidden_size: int, base: str, folder: Path) -> Path:
    """Save the classifier of `write_xlora` alone; returns the folder."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(99)
    outputs = count * len(layout.sizes)
    tensors = {
        "last.weight": torch.empty(outputs, hidden_size, device="cpu").normal_(0.0, 0.02, generator=generator),
        "last.bias": torch.zeros(outputs),
    }
    save_file(tensors, folder / "xlora_classifier.safetensors")
    config = {
        "base_model_id": base,
        "hidden_size": hidden_size,
        "layerwise_scalings": True,
        "xlora_depth": 1,
        "xlora_size": 2048,
        "use_bias": True,
        "enable_softmax": True,
        "enable_softmax_topk": False,
        "softmax_temperature": 1.0,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
        "top_k_lora": None,
        "adapters": [adapter_name(number) for number in range(count)],
        "enable_relu_and_dropout": False,
        "use_trainable_adapters": False,
    }
    (folder / "xlora_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_flat(adapters: Sequence[Path], layout: AdapterLayout, base: str, folder: Path) -> Path:
    """The same adapters as files side by side, with `ordering.json`: mistral.rs 0.3 lists no sub-folders on a disk, and
    wants one id of the base everywhere. An X-LoRA's classifier beside the adapters comes along. Returns the folder.
    """
    folder.mkdir(parents=True)
    for adapter in adapters:
        shutil.copyfile(adapter / WEIGHTS_NAME, folder / f"{adapter.name}.safetensors")
        shutil.copyfile(adapter / CONFIG_NAME, folder / f"{adapter.name}.json")
    classifier = adapters[0].parent / "xlora_classifier.safetensors"
    if classifier.exists():
        shutil.copyfile(classifier, folder / classifier.name)
        config = json.loads((classifier.parent / "xlora_config.json").read_text(encoding="utf-8"))
        config["base_model_id"] = base
        (folder / "xlora_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_ordering(layout, len(adapters), base, folder / "ordering.json")
    return folder
