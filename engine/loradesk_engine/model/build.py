"""A decoder from a checkpoint's named tensors. Missing, unexpected or misshapen tensors are errors, never guesses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from loradesk_engine.architectures.architecture import Experts
from loradesk_engine.errors import CheckpointError
from loradesk_engine.formats.bnb import stored_matrix
from loradesk_engine.formats.config import ModelConfig
from loradesk_engine.model.bnb import bnb_linear, quantize, quantized_while_loading
from loradesk_engine.model.decoder import Decoder, Layer
from loradesk_engine.model.linear import (
    NARROW,
    DenseEmbedding,
    DenseLinear,
    Embedding,
    Linear,
    Projection,
    fast_layout,
    fuse,
)
from loradesk_engine.model.mlp import Activation, ExpertsMlp, GatedMlp, Mlp, PlainMlp
from loradesk_engine.model.native.matrix import NativeMatrix
from loradesk_engine.model.norm import LayerNorm, Norm, PlusOneRmsNorm, RmsNorm
from loradesk_engine.model.quantized import (
    GgufWeights,
    PackedEmbedding,
    PackedLinear,
    PackedMatrix,
    QuantizedMatrix,
    fuse_packed,
    goes_native,
)

# Old checkpoints carry tables that are computed from the config today.
IGNORED_ENDINGS = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
FLOAT_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def build_decoder(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    context: int,
    keep_packed: bool = True,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> Decoder:
    """Build the decoder that `config` describes.

    Each tensor is brought to `device` and `dtype` by itself; one that is there already is used as it is, so a
    memory-mapped checkpoint of the same type costs no copy.

    Args:
        weights: name -> tensor, read when asked for.
        folder: the checkpoint, for error messages.
        context: how long a sequence may become.
        keep_packed: hold quantized matrices as they are; otherwise they are dequantized once, for speed.
        progress: called with the fraction that is done; may raise to cancel.

    Raises:
        CheckpointError: a tensor is missing, not expected, or of another shape or type than the config says.
    """
    return _Builder(config, weights, folder, device, dtype, keep_packed, progress).build(context)


class _Builder:
    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        keep_packed: bool,
        progress: Callable[[float], None],
    ) -> None:
        self.config = config
        self.weights = weights
        self.folder = folder
        self.device = device
        self.dtype = dtype
        self.keep_packed = keep_packed
        self.progress = progress
        self.taken: set[str] = set()
        self.parameters = 0
        self.nbytes = 0
        self.index = {path: index for index, path in enumerate(config.linear_paths)}
        self.linears: dict[int, Linear] = {}
        self.projections: list[Projection] = []

    def build(self, context: int) -> Decoder:
        config = self.config
        embedding, shared = self.embedding()
        layers = [self.layer(number) for number in range(config.num_layers)]
        norm = self.norm(config.family.names.final_norm)
        if shared is not None:
            index = self.index["lm_head"]
            bias = self.take("lm_head.bias", config.vocab_size) if config.lm_head_bias else None
            self.linears[index] = (
                DenseLinear("lm_head", index, shared, bias)
                if isinstance(shared, Tensor)
                else PackedLinear("lm_head", index, shared, bias)
            )
            self.taken.add("lm_head.weight")  # some checkpoints save the tied matrix twice
        else:
            self.linear("lm_head", config.hidden_size, config.vocab_size, config.lm_head_bias)
        self.projection(self.linears[self.index["lm_head"]])
        self.refuse_unexpected()
        self.progress(1.0)
        return Decoder(
            config,
            embedding,
            layers,
            norm,
            [self.linears[index] for index in range(len(self.index))],
            self.projections,
            device=self.device,
            dtype=self.dtype,
            context=context,
            parameters=self.parameters,
            nbytes=self.nbytes,
        )

    def layer(self, number: int) -> Layer:
        config, names = self.config, self.config.family.names
        path = f"model.layers.{number}"
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        sizes = (q_size, kv_size, kv_size) if len(names.qkv) > 1 else (q_size + 2 * kv_size,)
        hidden = config.hidden_size
        return Layer(
            input_norm=self.norm(f"{path}.{names.input_norm}"),
            qkv=self.projection(
                *(
                    self.linear(f"{path}.{name}", hidden, size, config.qkv_bias)
                    for name, size in zip(names.qkv, sizes, strict=True)
                )
            ),
            o_proj=self.projection(self.linear(f"{path}.{names.attention_out}", q_size, hidden, config.o_bias)),
            mlp=self.mlp(path),
            mlp_norm=self.optional_norm(path, names.mlp_norm),
            q_norm=self.optional_norm(path, names.q_norm, config.head_dim),
            k_norm=self.optional_norm(path, names.k_norm, config.head_dim),
            attention_norm=self.optional_norm(path, names.attention_norm),
            out_norm=self.optional_norm(path, names.out_norm),
            window=config.windows[number],
        )

    def mlp(self, path: str) -> Mlp:
        config, names = self.config, self.config.family.names
        if names.experts is not None:
            return self.experts(path, names.experts)
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        width = 2 * inner if config.family.mlp == "fused" else inner
        first = self.projection(*(self.linear(f"{path}.{name}", hidden, width, bias) for name in names.mlp_in))
        second = self.projection(self.linear(f"{path}.{names.mlp_out}", inner, hidden, bias))
        return (PlainMlp if config.family.mlp == "plain" else GatedMlp)(first, second, _activation(config))

    def experts(self, path: str, names: Experts) -> ExpertsMlp:
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size

        def linear(number: int, name: str, in_features: int, out_features: int) -> Linear:
            return self.linear(f"{path}.{names.path(number, name)}", in_features, out_features, False)

        experts = [
            GatedMlp(
                self.projection(
                    linear(number, names.gate, hidden, inner),
                    linear(number, names.up, hidden, inner),
                ),
                self.projection(linear(number, names.down, inner, hidden)),
                _activation(config),
            )
            for number in range(config.experts)
        ]
        router = self.projection(self.linear(f"{path}.{names.router}", hidden, config.experts, False))
        return ExpertsMlp(router, experts, config.experts_per_token)

    def embedding(self) -> tuple[Embedding, Tensor | QuantizedMatrix | None]:
        """The embedding, and its matrix where the output layer shares it."""
        name, shape = "model.embed_tokens.weight", (self.config.vocab_size, self.config.hidden_size)
        packed = self.take_packed(name, *shape)
        if packed is not None:
            if self.config.tie_embeddings:
                held = self.hold(name, packed)
                return PackedEmbedding(held, self.dtype), held
            packed = packed.to(self.device)  # rows are looked up in the blocks as they are
            self.note(name, packed.rows * packed.columns, packed.nbytes)
            return PackedEmbedding(packed, self.dtype), None
        stored = self.read(name, *shape)
        if goes_native(stored.dtype, self.dtype, self.device):
            if not self.config.tie_embeddings:
                self.note(name, stored.numel(), stored.nbytes)
                return DenseEmbedding(stored, self.dtype), None
            held = self.hold_plain(name, stored)
            return PackedEmbedding(held, self.dtype), held
        matrix = self.take(name, *shape)
        if not self.config.tie_embeddings:
            return DenseEmbedding(matrix, self.dtype), None
        matrix = fast_layout(matrix)  # one matrix for both, so in the layout of the one that costs more
        return DenseEmbedding(matrix, self.dtype), matrix

    def linear(self, path: str, in_features: int, out_features: int, bias: bool) -> Linear:
        name, index = f"{path}.weight", self.index[path]
        packed = self.take_packed(name, out_features, in_features)
        added = self.take(f"{path}.bias", out_features) if bias else None
        if packed is not None:
            self.linears[index] = PackedLinear(path, index, self.hold(name, packed), added)
        else:
            self.linears[index] = self.bnb_linear(path, (out_features, in_features), added) or self.plain_linear(
                path, (out_features, in_features), added
            )
        return self.linears[index]

    def plain_linear(self, path: str, shape: tuple[int, int], bias: Tensor | None) -> Linear:
        name, index = f"{path}.weight", self.index[path]
        stored = self.read(name, *shape)
        if goes_native(stored.dtype, self.dtype, self.device):
            return PackedLinear(path, index, self.hold_plain(name, stored), bias)
        return DenseLinear(path, index, fast_layout(self.take(name, *shape)), bias)

    def bnb_linear(self, path: str, shape: tuple[int, int], bias: Tensor | None) -> Linear | None:
        """The linear in bitsandbytes' form; None where it is not quantized."""
        config, name = self.config.bnb, f"{path}.weight"
        if config is None:
            return None
        if config.stored:
            matrix = stored_matrix(self.weights, path, shape, self.folder)
        else:
            matrix = (
                quantize(self.read(name, *shape), config.kind, self.device) if quantized_while_loading(path) else None
            )
        if matrix is None:
            return None
        linear = bnb_linear(path, self.index[path], matrix, bias, config, device=self.device, dtype=self.dtype)
        self.taken.update(matrix.names)
        self.note(name, shape[0] * shape[1], linear.nbytes - (bias.nbytes if bias is not None else 0))
        return linear

    def projection(self, *linears: Linear) -> Projection:
        """What reads one input, fused into one product where that pays."""
        dense = [linear for linear in linears if isinstance(linear, DenseLinear)]
        # On the CPU a wide matrix stays where the checkpoint has it in memory: a copy would save no time there.
        pays = self.device.type != "cpu" or linears[0].in_features <= NARROW
        packed = [linear for linear in linears if isinstance(linear, PackedLinear)]
        product: Callable[[Tensor], Tensor] | None = None
        if len(dense) == len(linears) > 1 and pays:
            product = fuse(dense)
        elif len(packed) == len(linears) > 1:
            product = fuse_packed(packed)
        self.projections.append(Projection(len(self.projections), linears, product))
        return self.projections[-1]

    def norm(self, path: str, size: int | None = None) -> Norm:
        size = size or self.config.hidden_size
        weight = self.take(f"{path}.weight", size)
        if self.config.family.norm == "layer":
            return LayerNorm(weight, self.take(f"{path}.bias", size), self.config.norm_eps)
        return (PlusOneRmsNorm if self.config.norm_plus_one else RmsNorm)(weight, self.config.norm_eps)

    def optional_norm(self, path: str, name: str | None, size: int | None = None) -> Norm | None:
        return None if name is None else self.norm(f"{path}.{name}", size)

    def take_packed(self, name: str, *shape: int) -> PackedMatrix | None:
        """The quantized matrix of this name as the file has it; None where it is not quantized or not to stay so."""
        if not self.keep_packed or not isinstance(self.weights, GgufWeights):
            return None
        self.refuse_missing(name)
        packed = self.weights.packed(name)
        if packed is None:
            return None
        self.refuse_shape(name, (packed.rows, packed.columns), shape)
        return packed

    def hold(self, name: str, packed: PackedMatrix) -> QuantizedMatrix:
        """A quantized matrix on the model's device, in the form that is quick there."""
        held = packed.on(self.device)
        self.note(name, packed.rows * packed.columns, held.nbytes)
        return held

    def hold_plain(self, name: str, matrix: Tensor) -> NativeMatrix:
        """A matrix of plain numbers as they are, for the kernels of the CPU."""
        held = NativeMatrix.of_plain(matrix)
        self.note(name, matrix.numel(), held.nbytes)
        return held

    def refuse_missing(self, name: str) -> None:
        if name not in self.weights:
            raise CheckpointError(
                "The tensor is missing.",
                file=self.folder,
                field=name,
                remedy="The checkpoint does not fit its configuration.",
            )

    def refuse_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise CheckpointError(
                f"The tensor has shape {list(found)}, the configuration says {list(expected)}.",
                file=self.folder,
                field=name,
            )

    def note(self, name: str, parameters: int, nbytes: int) -> None:
        self.taken.add(name)
        self.parameters += parameters
        self.nbytes += nbytes
        self.progress(min(1.0, len(self.taken) / len(self.weights)))

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name, checked and brought to the model's device and type."""
        tensor = self.read(name, *shape).to(self.device, self.dtype)
        self.note(name, tensor.numel(), tensor.nbytes)
        return tensor

    def read(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name as the checkpoint has it, of a shape and type that the configuration allows."""
        self.refuse_missing(name)
        tensor = self.weights[name]
        self.refuse_shape(name, tuple(tensor.shape), shape)
        if tensor.dtype not in FLOAT_TYPES:
            raise CheckpointError(f"The type {tensor.dtype} is not supported here.", file=self.folder, field=name)
        return tensor

    def refuse_unexpected(self) -> None:
        unexpected = [name for name in self.weights if name not in self.taken and not name.endswith(IGNORED_ENDINGS)]
        if unexpected:
            raise CheckpointError(
                f"{len(unexpected)} tensors are not part of {self.config.architecture}.",
                file=self.folder,
                field=unexpected[0],
                remedy="The checkpoint does not fit its configuration.",
            )


def _activation(config: ModelConfig) -> Activation:
    if config.activation == "silu":
        return F.silu
    if config.activation == "gelu":
        return F.gelu
    return lambda x: F.gelu(x, approximate="tanh")
