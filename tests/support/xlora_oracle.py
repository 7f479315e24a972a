"""X-LoRA worked out by hand on transformers' model, with scaling passes that PEFT does not have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from support import tiny


class XLoraOracle(nn.Module):
    """transformers' model with the adapters as hooks, and the classifier, from a checkpoint's files."""

    def __init__(self, base: Path, checkpoint: Path, ordering: Path) -> None:
        super().__init__()
        self.model = tiny.load(base)
        self.config = json.loads((checkpoint / "xlora_config.json").read_text(encoding="utf-8"))
        names = json.loads(ordering.read_text(encoding="utf-8"))
        configs = [
            json.loads((checkpoint / name / "adapter_config.json").read_text(encoding="utf-8"))
            for name in names["order"]
        ]
        self.scales = [c["lora_alpha"] / (c["r"] ** 0.5 if c["use_rslora"] else c["r"]) for c in configs]
        self.layers: dict[str, int] = names["layers"]
        self.classifier = _held(load_file(checkpoint / "xlora_classifier.safetensors"))
        self.adapters = nn.ModuleList(
            _held(load_file(checkpoint / name / "adapter_model.safetensors")) for name in names["order"]
        )

    @contextmanager
    def adapted(self, scalings: Tensor) -> Iterator[None]:
        """scalings: [tokens, layers, adapters]"""
        hooks = []
        for path, layer in self.layers.items():

            def add(module: Any, inputs: Any, output: Any, path: str = path, layer: int = layer) -> Tensor:
                for number, (tensors, scale) in enumerate(zip(self.adapters, self.scales, strict=True)):
                    a, b = (tensors[_key(f"base_model.model.{path}.lora_{side}.weight")] for side in "AB")
                    part = inputs[0] @ a.T @ b.T * scale * self.config["global_scaling_weight"]
                    output = output + part * scalings[None, :, layer, number, None]
                return output

            hooks.append(self.model.get_submodule(path).register_forward_hook(add))
        yield
        for hook in hooks:
            hook.remove()

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [tokens, vocab] and scalings [tokens, layers, adapters]."""
        shape = (len(ids), len(self.layers), len(self.adapters))
        last, inner = (self._linears(kind) for kind in ("last", "inner"))
        with self.adapted(torch.full(shape, self.config["scaling_pass_value"], dtype=last[0][0].dtype)):
            hidden = self.model.model(ids[None]).last_hidden_state[0]
        for weight, bias in inner:
            hidden = F.linear(hidden, weight, bias).relu()
        scalings = torch.softmax(F.linear(hidden, *last[0]).view(shape) / self.config["softmax_temperature"], -1)
        with self.adapted(scalings):
            return torch.log_softmax(self.model(ids[None]).logits[0], -1), scalings

    def _linears(self, kind: str) -> list[tuple[Tensor, Tensor]]:
        """Weights and biases of the classifier's linears of one kind, in their order."""
        stems = sorted({name.rpartition("/")[0] for name in self.classifier if name.startswith(kind)})
        return [(self.classifier[f"{stem}/weight"], self.classifier[f"{stem}/bias"]) for stem in stems]


def _held(tensors: dict[str, Tensor]) -> nn.ParameterDict:
    return nn.ParameterDict({_key(name): nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()})


def _key(name: str) -> str:
    """A tensor's name as a module's attribute may have it."""
    return name.replace(".", "/")
