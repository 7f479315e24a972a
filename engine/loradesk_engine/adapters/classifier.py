"""The X-LoRA classifier: hidden states of the scaling pass to the scalings of every token, layer and adapter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.errors import AdapterError
from loradesk_engine.formats.xlora import XLoraCheckpoint, XLoraConfig


class Classifier:
    """Linear(-ReLU-...)-Linear, then softmax with temperature, top-k, softmax over the kept ones, each if configured.

    Args:
        checkpoint: where the weights come from.
        layers, adapters: sizes of the mixture it is for.

    Raises:
        AdapterError: the classifier's outputs do not match `layers * adapters` (`adapters` when not layerwise), or its
            input does not match the model.
    """

    def __init__(
        self,
        checkpoint: XLoraCheckpoint,
        *,
        hidden_size: int,
        layers: int,
        adapters: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config = checkpoint.config
        if config.hidden_size != hidden_size:
            raise AdapterError(
                f"The classifier is for hidden states of {config.hidden_size} values, the model's have {hidden_size}.",
                file=checkpoint.config_file,
                field="hidden_size",
                remedy="Load it on the base model it was trained on.",
            )
        expected = layers * adapters if config.layerwise_scalings else adapters
        if checkpoint.outputs != expected:
            counts = f"{layers} layers x {adapters} adapters" if config.layerwise_scalings else f"{adapters} adapters"
            raise AdapterError(
                f"The classifier has {checkpoint.outputs} outputs, {counts} need {expected}.",
                file=checkpoint.weights_file,
                field=checkpoint.layers[-1].weight,
                remedy="In the ordering file, `order` must name the adapters of the training, `layers` their modules.",
            )
        self.config: XLoraConfig = config
        self.layers = layers
        self.adapters = adapters
        self._linears = [
            (
                weight.to(device, dtype),
                None if bias is None else bias.to(device, dtype),
                layer.relu,
            )
            for layer in checkpoint.layers
            for weight, bias in [checkpoint.weights(layer)]
        ]

    @property
    def nbytes(self) -> int:
        """Memory its weights hold."""
        return sum(weight.nbytes + (0 if bias is None else bias.nbytes) for weight, bias, _ in self._linears)

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden: [rows, hidden_size], after the final norm -> float32 [rows, layers, adapters]"""
        for weight, bias, relu in self._linears:
            hidden = F.linear(hidden, weight, bias)
            if relu:
                hidden = F.relu(hidden)
        scalings = hidden.float().view(hidden.shape[0], -1, self.adapters)  # [rows, layers or 1, adapters]
        if self.config.enable_softmax:
            scalings = torch.softmax(scalings / self.config.softmax_temperature, dim=-1)
        if self.config.top_k_lora is not None and self.config.top_k_lora < self.adapters:
            kept = torch.topk(scalings, self.config.top_k_lora, dim=-1).indices
            mask = torch.zeros_like(scalings, dtype=torch.bool).scatter_(-1, kept, True)
            scalings = scalings.masked_fill(~mask, 0.0)
        if self.config.enable_softmax_topk:
            # per token and layer over the adapters that are not zero, as PEFT does; xlora normalises over all tokens at
            # once
            zero = scalings == 0
            scalings = torch.softmax(scalings.masked_fill(zero, -torch.inf), dim=-1).masked_fill(zero, 0.0)
        return scalings.expand(-1, self.layers, -1)
