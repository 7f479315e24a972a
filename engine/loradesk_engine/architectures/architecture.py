"""What distinguishes one family of models from another, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

MlpType = Literal["gated", "fused", "plain", "experts"]

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LLAMA_LINEARS = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
COMMON_DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 2048,
    "rope_theta": 10_000.0,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
"""Keys of config.json that most of transformers' classes default alike."""


@dataclass(frozen=True)
class Experts:
    """Module names of a mixture of experts, below `model.layers.<n>.`.

    Attributes:
        router: the linear that chooses the experts.
        folder: what the experts are numbered under.
        gate, up, down: linears of an expert.
        order: the same three in the order of registration.
    """

    router: str
    folder: str
    gate: str
    up: str
    down: str
    order: tuple[str, str, str]

    def linears(self, count: int) -> tuple[str, ...]:
        """The router and the linears of `count` experts, in the order of registration."""
        return (self.router, *(self.path(expert, name) for expert in range(count) for name in self.order))

    def path(self, expert: int, name: str) -> str:
        """One linear of one expert."""
        return f"{self.folder}.{expert}.{name}"


@dataclass(frozen=True)
class Names:
    """Module names of a layer, below `model.layers.<n>.`; None where the family has no such module.

    Attributes:
        input_norm: before attention.
        qkv: queries, keys and values; one name if they are one linear.
        q_norm, k_norm: norms of each head's query and key before rope.
        attention_out: the attention's output linear.
        attention_norm: on the attention's output, before it is added.
        mlp_norm: before the MLP; None if attention and MLP read the same norm and are added together.
        mlp_in: gate and up; one name if they are one linear, or if the MLP has no gate.
        mlp_out: the MLP's output linear.
        out_norm: on the MLP's output, before it is added.
        experts: instead of `mlp_in` and `mlp_out`.
        final_norm: after the last layer; a whole path.
    """

    input_norm: str = "input_layernorm"
    qkv: tuple[str, ...] = ATTENTION[:3]
    q_norm: str | None = None
    k_norm: str | None = None
    attention_out: str = ATTENTION[3]
    attention_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    mlp_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    mlp_out: str = "mlp.down_proj"
    out_norm: str | None = None
    experts: Experts | None = None
    final_norm: str = "model.norm"

    def linears(self, experts: int) -> tuple[str, ...]:
        """The linears of a layer, attention first."""
        mlp = (*self.mlp_in, self.mlp_out) if self.experts is None else self.experts.linears(experts)
        return (*self.qkv, self.attention_out, *mlp)


@dataclass(frozen=True)
class Windows:
    """Which layers have config.json's `sliding_window`: all, or those that `layer_types` names.

    Attributes:
        mixed: some layers have it.
        switch: key that turns the windows on.
        period: without `layer_types`, every layer has it but each `period`-th; a number, or the key that holds it.
        first: without `layer_types`, key of the first layer that has it.
    """

    mixed: bool = False
    switch: str | None = None
    period: int | str | None = None
    first: str | None = None


@dataclass(frozen=True)
class Rope:
    """How a family reads the rotary position embedding from config.json.

    Attributes:
        partial: the class follows `partial_rotary_factor`.
        yarn_is_longrope: its first configs say `yarn` and mean `longrope`.
        local_theta: key of the base of the layers with a window, where these have a rope of their own.
    """

    partial: bool = False
    yarn_is_longrope: bool = False
    local_theta: str | None = None


@dataclass(frozen=True)
class Gguf:
    """What is particular to a family's GGUF files. Tensors' names follow from `Names`.

    Attributes:
        name: `general.architecture`.
        permuted: the rows of queries and keys are interleaved, because llama.cpp rotates neighbours.
        biases: a linear has a bias if the file holds one; otherwise no linear has.
        windows: a sliding window is supported.
        default_window: the window if the file has no key for it.
        wide_layers: a model with so many layers scales attention by 1 / sqrt(hidden size / heads) instead of the head's
            size; files do not hold this scale.
    """

    name: str
    permuted: bool = False
    biases: bool = False
    windows: bool = False
    default_window: int | None = None
    wide_layers: int | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """A family of models. Every feature that a family may lack defaults to off.

    A bias is there, is not there, or is decided by a key of config.json, which then has a default here.

    Attributes:
        model_type: of config.json.
        classes: names of its classes in transformers.
        image_classes: further classes, which also see images and of which the text part is used.
        defaults: key of config.json -> its value where it is left out, as in transformers 5.24. Derived keys have none:
            key-value heads from the heads, a head's size from the hidden size.
        names: of the modules.
        order: the linears of a layer in the order of registration, where that is not attention first.
        quantized: linears that adapters may sit on when the base is quantized; mistral.rs limits them.
        norm: root mean square, or layer norm with a bias.
        norm_plus_one: the norms' weights are stored less one.
        norm_eps_key, activation_key: keys of config.json.
        mlp: `gated`, `fused` (gate and up in one), `plain`, or `experts`.
        scale_key: attention is scaled by 1 / sqrt of this key instead of the head's size.
        scaled_embedding: embeddings are multiplied by the square root of the hidden size.
        capped_attention: the class follows `attn_logit_softcapping`.
        capped_logits: classes that follow `final_logit_softcapping`.
        windows: None if the class ignores `sliding_window`.
        gguf: None if GGUF files of it are not supported.
    """

    model_type: str
    classes: tuple[str, ...]
    image_classes: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(repr=False)
    names: Names = Names()
    order: tuple[str, ...] | None = None
    quantized: tuple[str, ...] = LLAMA_LINEARS
    norm: Literal["rms", "layer"] = "rms"
    norm_plus_one: bool = False
    norm_eps_key: str = "rms_norm_eps"
    activation_key: str = "hidden_act"
    mlp: MlpType = "gated"
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    lm_head_bias: bool = False
    scale_key: str | None = None
    scaled_embedding: bool = False
    capped_attention: bool = False
    capped_logits: tuple[str, ...] = ()
    windows: Windows | None = None
    rope: Rope = Rope()
    gguf: Gguf | None = None

    def linears(self, experts: int) -> tuple[str, ...]:
        """The linears of a layer in the order of registration, below `model.layers.<n>.`"""
        return self.order or self.names.linears(experts)

    def activation(self, values: Mapping[str, Any]) -> Any:
        """The activation's name in a config.json whose defaults are filled in."""
        return values.get(self.activation_key)
