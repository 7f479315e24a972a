"""LoRA on the experts of transformers 5, which keeps those of a layer in two parameters instead of three linears each.

PEFT (0.21, `ParamWrapper`) puts a wrapper around the experts' module for each parameter, so that the weights' names say
how deep a wrapper lies, not what it adapts: `mlp.experts.lora_A` is the outermost, `mlp.experts.base_layer.lora_A` the
next. They are put on in the order of the parameters. Of E experts with rank r:

    lora_A  [E r, in]    expert e has rows e r to e r + r
    lora_B  [out, r E]   expert e has every E-th column from the e-th on

The decoder has the linears by which everybody else calls them, `block_sparse_moe.experts.<e>.w1`, `w2` and `w3`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loradesk_engine.ordering.modules import MAX_EXPERTS

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = ("gate_up_proj", "down_proj")  # from the inside out
LINEARS = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}  # a parameter's rows are theirs, one after the other
_EXPERTS = re.compile(r"((?:.+\.)?)mlp\.experts((?:\.base_layer)*)")
_ROUTER = re.compile(r"((?:.+\.)?)mlp\.gate")


@dataclass(frozen=True)
class FusedPlace:
    """Where in the model a wrapper lies.

    Attributes:
        block: path of the layer, with its dot.
        depth: wrappers around it.
    """

    block: str
    depth: int

    def parameter(self, name: str) -> str:
        """Path of one of the `PARAMETERS`, as PEFT has it."""
        return f"{self.block}mlp.experts.{name}"

    def linear(self, expert: int, name: str) -> str:
        """Path of an expert's linear, as the decoder has it."""
        return f"{self.block}block_sparse_moe.experts.{expert}.{name}"


@dataclass(frozen=True)
class ExpertShare:
    """What of the two matrices belongs to one linear.

    Attributes:
        expert, experts: which of how many.
        part, parts: which part of the rows of `lora_B`.
    """

    expert: int
    experts: int
    part: int
    parts: int

    def a(self, whole: Tensor) -> Tensor:
        """[experts r, in] -> [r, in]"""
        rank = whole.shape[0] // self.experts
        return whole[self.expert * rank : (self.expert + 1) * rank]

    def b(self, whole: Tensor) -> Tensor:
        """[parts out, r experts] -> [out, r]"""
        rows = whole.shape[0] // self.parts
        return whole[self.part * rows : (self.part + 1) * rows, self.expert :: self.experts]


def fused_place(path: str) -> FusedPlace | None:
    """The place of a module's path; None where it is not that of fused experts."""
    match = _EXPERTS.fullmatch(path)
    return None if match is None else FusedPlace(match[1], match[2].count(".base_layer"))


def classic_path(path: str) -> str:
    """The decoder's path of a linear; in transformers 5 that of Mixtral's router is another."""
    return _ROUTER.sub(r"\1block_sparse_moe.gate", path) if _ROUTER.fullmatch(path) else path


def count_experts(rows: int, rank: int) -> int | None:
    """How many experts of a rank have so many rows in `lora_A`; None where that is no count of experts."""
    experts, rest = divmod(rows, rank)
    return experts if rest == 0 and 1 <= experts <= MAX_EXPERTS else None
