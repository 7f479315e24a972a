"""How near to the exact result the engine must be: about as near as the oracle is in the same type.

The exact result is the oracle's own, computed in float64. How far float32 strays from it depends on the model, the
input, the processor and the libraries; all of that is the same for the oracle's float32, which is measured beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FACTOR = 5
"""How many times as far off as the oracle the engine may be, by the largest difference. Both add the same numbers in
another order, so their errors are draws of one kind, and the largest of thousands are within a few times each other. A
mistake is thousands of times as large."""


@dataclass(frozen=True)
class Reference:
    """What an oracle gives.

    Attributes:
        exact: computed in float64.
        own: computed in the type that the engine is compared in.
        noise: the error of a float32 sum in any order, where the oracle's library may add in a more careful one.
    """

    exact: Tensor
    own: Tensor
    noise: float = 0.0

    def __getitem__(self, place: Any) -> Reference:
        return Reference(self.exact[place], self.own[place], self.noise)

    @property
    def allowed(self) -> float:
        """The largest difference from the exact result that passes.

        The oracle may be exact by luck, so its error counts as one rounding of the largest number at least.
        """
        rounding = torch.finfo(self.own.dtype).eps * _largest(self.exact)
        return FACTOR * max(_largest(self.own.double() - self.exact), rounding, self.noise)

    def error(self, found: Tensor) -> float:
        """The largest difference of the engine's result from the exact one."""
        return _largest(found.double() - self.exact)

    def assert_near(self, found: Tensor) -> None:
        """Fail where the engine's result is further off than is allowed."""
        assert found.shape == self.exact.shape
        error, allowed = self.error(found), self.allowed
        assert error <= allowed, f"{error:.3g} from float64, allowed {allowed:.3g} ({FACTOR} times the oracle's)"


def product(x: Tensor, weight: Tensor, own: Tensor) -> Reference:
    """A product by a library that splits long sums, as cuBLAS does, so that its own error is under a plain sum's.

    The rounding errors of n terms add up like a random walk: sqrt(n) roundings of the sum's size (Higham and Mary,
    2019). float32 products of reduced precision are off by hundreds of times that.

    Args:
        x: float64 [rows, columns].
        weight: float64 [outputs, columns].
        own: x @ weight.T by the library.
    """
    size = _largest((x.square() @ weight.square().t()).sqrt())
    return Reference(x @ weight.t(), own, torch.finfo(torch.float32).eps * weight.shape[1] ** 0.5 * size)


@dataclass(frozen=True)
class Codes:
    """Inputs of products that are rounded to whole numbers on purpose, as docs/engine.md says.

    Attributes:
        group: columns that share a scale; None: all of a row.
        largest: the code of a group's largest number.
    """

    group: int | None
    largest: int = 32767

    def rounded(self, x: Tensor, offset: float = 0.0) -> Tensor:
        """x to the nearest of numbers a step apart, which begin at `offset` steps. x: [..., columns]"""
        groups = x.unflatten(-1, (-1, self.group or x.shape[-1]))
        step = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / self.largest
        return (((groups / step - offset).round() + offset) * step).flatten(-2)


def whole_pass(ids: Tensor) -> Callable[[Any], Tensor]:
    """What gives the logits of a model of transformers or PEFT. ids: int64 [tokens] -> [tokens, vocab]"""
    return lambda model: model(input_ids=ids[None], use_cache=False).logits[0]


def reference(model: nn.Module, run: Callable[[Any], Tensor], codes: Codes | None = None) -> Reference:
    """What `run` gives of a model as it is and in float64.

    Args:
        model: of transformers or PEFT, in float32.
        codes: how the inputs of the base's linears are rounded where the engine does so.
    """
    with torch.inference_mode():
        expected = exact(model, run)
        if codes is None:
            return Reference(expected, run(model))
        return _furthest(expected, [run(with_rounded_inputs(model, codes, offset)) for offset in OFFSETS])


OFFSETS = (0.0, 1 / 3, -1 / 3)
"""Roundings of the same fineness. One alone is one draw, and may be lucky in the largest of its errors."""


def _furthest(expected: Tensor, owns: list[Tensor]) -> Reference:
    return max((Reference(expected, own) for own in owns), key=lambda one: one.allowed)


def xlora_references(model: nn.Module, ids: Tensor, codes: Codes | None = None) -> tuple[Reference, Reference]:
    """The logits [tokens, vocab] that PEFT's X-LoRA gives for ids, and its classifier's scalings [tokens, layers,
    adapters], before top-k is taken of them.
    """
    scalings: list[Tensor] = []

    def logits(xlora: Any) -> Tensor:
        found: Tensor = xlora(input_ids=ids[None]).logits[0]
        scalings.append(xlora.base_model.internal_xlora_scalings[0])
        return found

    found = reference(model, logits, codes)
    return found, _furthest(scalings[0], scalings[1:])


def with_rounded_inputs(model: nn.Module, codes: Codes, offset: float) -> nn.Module:
    """A copy whose linears, but for those of adapters and classifiers, read rounded inputs; experts do, too."""

    def rounded(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (codes.rounded(inputs[0], offset), *inputs[1:])

    copied = copy.deepcopy(model)
    for name, module in copied.named_modules():
        of_base = not any(part in name for part in ("lora_A", "lora_B", "xlora_classifier"))
        if of_base and (isinstance(module, nn.Linear) or hasattr(module, "gate_up_proj")):
            module.register_forward_pre_hook(rounded)
    return copied


def exact(model: nn.Module, run: Callable[[Any], Tensor]) -> Tensor:
    """What `run` gives of a copy of the model that computes in float64 throughout."""
    with torch.inference_mode(), InFloat64():
        found = run(doubled(model))
    assert found.dtype == torch.float64
    return found


def doubled(model: nn.Module) -> nn.Module:
    """A copy in float64, to be run within `InFloat64`."""
    copied = copy.deepcopy(model).double()
    with InFloat64():
        for module in copied.modules():
            if hasattr(module, "gate_up_proj") and hasattr(module, "config"):  # experts
                module.config._experts_implementation = "eager"  # the default one has no float64
            frequencies = {name: held for name, held in module.named_buffers(recurse=False) if "inv_freq" in name}
            if frequencies:  # rounded to float32 before it was a copy
                made = dict(type(module)(module.config).named_buffers())
                for name, held in frequencies.items():
                    setattr(module, name, made[name].to(held.device))
    return copied


class InFloat64(TorchFunctionMode):
    """Within it float32 stands for float64: transformers computes norms, rotations and softmax in float32 by name."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        wide = [torch.float64 if arg is torch.float32 else arg for arg in args]
        named = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return function(*wide, **named)


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0
