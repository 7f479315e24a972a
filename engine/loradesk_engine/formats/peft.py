"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

What this reader does not support it refuses by name: an option that is silently ignored gives an adapter that is
    silently wrong.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradesk_engine.errors import AdapterError
from loradesk_engine.files import finite_number, json_type, read_json_object
from loradesk_engine.formats.adapter_place import CONFIG_NAME, WEIGHTS_NAME
from loradesk_engine.formats.fused_experts import (
    LINEARS,
    PARAMETERS,
    ExpertShare,
    FusedPlace,
    classic_path,
    count_experts,
    fused_place,
)
from loradesk_engine.formats.multimodal import text_name, whole_names
from loradesk_engine.formats.safetensors import (
    PICKLED_SUFFIXES,
    SafetensorsWeights,
    TensorEntry,
    find_pickle,
    refuse_pickle,
)
from loradesk_engine.formats.targets import Targets
from loradesk_engine.ordering.modules import MAX_LINEARS
from loradesk_engine.patterns import Matcher, PatternError

if TYPE_CHECKING:
    from torch import Tensor

MAX_RANK = 2**16
EXPERTS = ".block_sparse_moe."  # in the paths of Mixtral's linears

# What a tensor is, by the end of its name; the name of an adapter may stand in it.
KINDS = {
    kind: re.compile(rf"(?:base_model\.model\.)?(.+?)\.{ending}")
    for kind, ending in {
        "lora_A": r"lora_A(?:\.[^.]+)?\.weight",
        "lora_B": r"lora_B(?:\.[^.]+)?\.weight",
        "lora_bias": r"lora_B(?:\.[^.]+)?\.bias",
        "magnitude": r"lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?",
        "base_weight": r"base_layer\.weight",
        "base_bias": r"(?:base_layer\.)?bias",
    }.items()
}
STRANGERS = {
    "lora_embedding_": "adapted embeddings",
    "modules_to_save": "fully trained modules",
    "trainable_tokens": "trainable tokens",
    "norm.bias": "trained biases of norms",
}

CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")  # ways to begin a training, by `init_lora_weights`

# Options that change the maths: each must hold one of these values (absent is None).
PLAIN_VALUES: dict[str, tuple[object, ...]] = {
    "bias": ("none", "all", "lora_only"),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    "alora_invocation_tokens": (),
    "trainable_token_indices": ({}, []),
    "megatron_config": (),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "arrow_config": (),
    "kasa_config": (),
    "monteclora_config": (),
}


@dataclass(frozen=True)
class LoraModule:
    """One adapted linear.

    Attributes:
        path: of the linear in the base model, as Hugging Face names it.
        a, b: names of the tensors A `[rank, in]` and B `[out, rank]`.
        rank: r of this module.
        scale: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA.
        in_features, out_features: sizes of the linear.
        bias: name of B's own bias `[out]`, with `lora_bias`.
        magnitude: name of the magnitudes `[out]`, with DoRA.
        share: where A and B are those of all experts of a layer, what of them is this module's.
    """

    path: str
    a: str
    b: str
    rank: int
    scale: float
    in_features: int
    out_features: int
    bias: str | None = None
    magnitude: str | None = None
    share: ExpertShare | None = None


class PeftAdapter:
    """One LoRA adapter on disk: checked, its weights mapped and not yet read.

    Attributes:
        modules: path -> adapted linear.
        base_model: what it was trained on, as far as its configuration says.
        base_copies: `<path>.weight` or `<path>.bias` -> tensor. PEFT saves the base's own beside an adapter on
            `lm_head`; whoever loads the adapter has to see that the base has the same.
        biases: path -> tensor `[out]`, a linear's bias as training has left it (`bias` is "all" or "lora_only").
        options: names of the options it was trained with that add more than `B A x`.
        left_out: path -> names of its tensors, of modules that the file has and the configuration does not adapt; PEFT
            ignores them, too.
    """

    base_copies: Mapping[str, str]
    biases: Mapping[str, str]
    options: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]

    def __init__(
        self,
        weights: SafetensorsWeights,
        weights_file: Path,
        modules: Mapping[str, LoraModule],
        base: str | None,
        *,
        base_copies: Mapping[str, str],
        biases: Mapping[str, str],
        options: tuple[str, ...],
        left_out: Mapping[str, tuple[str, ...]],
        targets: Targets,
        trained: Collection[str],
    ) -> None:
        self.weights_file = weights_file
        self.modules = modules
        self.base_model = base
        self.base_copies = base_copies
        self.biases = biases
        self.options = options
        self.left_out = left_out
        self._weights = weights
        self._targets = targets
        self._trained = trained

    def missing(self, linears: Iterable[str]) -> tuple[str, ...]:
        """Those of a base's linears that the configuration adapts and the file has nothing for. PEFT leaves them as a
        training begins, where they change nothing.

        Raises:
            AdapterError: the configuration's patterns take too long.
        """
        if not self._targets.says_modules:
            return ()
        own = [module.path for module in self.modules.values() if module.share is None]
        # transformers 5 has no linears in a block of experts: who trained there meant none of them
        experts = any(EXPERTS in path for path in own)
        others = (path for path in linears if path not in self.modules and (experts or EXPERTS not in path))
        wanted = whole_names(others, self._trained)
        return tuple(wanted[name] for name in self._targets.modules(wanted))

    def weights(self, module: LoraModule) -> tuple[Tensor, Tensor]:
        """A `[rank, in]` and B `[out, rank]` of a module."""
        a, b = self._weights[module.a], self._weights[module.b]
        return (a, b) if module.share is None else (module.share.a(a), module.share.b(b))

    @property
    def warning(self) -> str | None:
        """What a user should know of it."""
        if not self.left_out:
            return None
        tensors = sum(map(len, self.left_out.values()))
        return (
            f"{tensors:,} tensors of {len(self.left_out):,} modules in {self.weights_file} are left out, "
            f"{next(iter(self.left_out))} first: {CONFIG_NAME} does not adapt them."
        )

    def tensor(self, name: str) -> Tensor:
        """One of the tensors that the attributes name."""
        return self._weights[name]


def read_adapter(
    source: str | os.PathLike[str], *, weights_file: Path | None = None, config_file: Path | None = None
) -> PeftAdapter:
    """Read an adapter's configuration and the header of its weights.

    Args:
        source: the adapter's folder, or its safetensors file with the configuration beside it.
        weights_file, config_file: where they lie when they are not named as PEFT names them.

    Raises:
        AdapterError: files are missing, an option is not supported, or tensors and configuration disagree.
        FileFormatError: a file is malformed.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix in PICKLED_SUFFIXES:
            raise refuse_pickle(source, AdapterError)
        weights_file = weights_file or source
        source = source.parent
    weights_file = weights_file or source / WEIGHTS_NAME
    config_file = config_file or source / CONFIG_NAME
    if not source.is_dir():
        raise AdapterError("The adapter's folder does not exist.", file=source, remedy="Check the path.")
    if not weights_file.is_file():
        pickled = find_pickle(source)
        if pickled is not None:
            raise refuse_pickle(pickled, AdapterError)
        raise AdapterError(
            f"No {weights_file.name} here.", file=source, remedy="Choose a folder that PEFT saved an adapter to."
        )
    config = read_json_object(config_file, error=AdapterError)
    _refuse_unsupported(config, config_file)
    options = _options(config, config_file)
    weights = SafetensorsWeights([weights_file])
    scales = _Scales(config, config_file)
    targets = Targets(config, config_file, scales.matcher)
    tensors, left_out = _targeted(_tensors(weights, weights_file), targets)
    modules = _Modules(scales, targets, options, weights, weights_file).read(tensors)
    if not modules and left_out:
        raise AdapterError(
            f"The configuration adapts none of the {len(left_out):,} modules in {weights_file.name}.",
            file=config_file,
            field="target_modules",
            remedy=f"Take both from the same training; the file's first module is {next(iter(left_out))}.",
        )
    if not modules:
        raise AdapterError("The file holds no LoRA weights.", file=weights_file)
    biases = {path: names["base_bias"] for path, names in tensors.items() if "base_bias" in names}
    for name in biases.values():
        _refuse_no_vector(weights.entries[name], name, weights_file)
    copies = {f"{path}.weight": names["base_weight"] for path, names in tensors.items() if "base_weight" in names}
    if "bias" not in options:
        copies |= {f"{path}.bias": name for path, name in biases.items()}
        biases = {}
    base = config.get("base_model_name_or_path")
    return PeftAdapter(
        weights,
        weights_file,
        modules,
        base if isinstance(base, str) and base else None,
        base_copies=copies,
        biases=biases,
        options=options,
        left_out=left_out,
        targets=targets,
        trained=[names.trained for names in tensors.values()],
    )


def _refuse_unsupported(config: Mapping[str, Any], file: Path) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        remedy = "Load it as an X-LoRA checkpoint." if kind == "XLORA" else "Only LoRA adapters are supported."
        raise AdapterError(
            f"This is an adapter of type {kind!r}, not LoRA.", file=file, field="peft_type", remedy=remedy
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGE_THE_BASE):
        raise AdapterError(
            f"Training with init_lora_weights = {start!r} changed the base model's weights as well.",
            file=file,
            field="init_lora_weights",
            remedy="Save it with path_initial_model_for_weight_conversion, which makes an ordinary LoRA of it.",
        )
    for option, allowed in PLAIN_VALUES.items():
        value = config.get(option)
        if value is not None and value not in allowed:
            raise AdapterError(
                f"The option {option} = {value!r} is not supported.",
                file=file,
                field=option,
                remedy="Train or export the adapter without it.",
            )


def _options(config: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Those of the options that add more than `B A x`."""
    options = tuple(option for option in ("use_dora", "lora_bias") if _flag(config, option, file))
    if len(options) == 2:
        raise AdapterError(
            "lora_bias does not go together with use_dora.",
            file=file,
            field="lora_bias",
            remedy="Train the adapter with one of them, as PEFT demands.",
        )
    return options if config.get("bias") in (None, "none") else (*options, "bias")


def _flag(config: Mapping[str, Any], option: str, file: Path) -> bool:
    value = config.get(option) or False
    if not isinstance(value, bool):
        raise AdapterError("true or false is expected.", file=file, field=option)
    return value


def _tensors(weights: SafetensorsWeights, file: Path) -> dict[str, _Named]:
    """Path of a module in the decoder -> its tensors. What only images go through does nothing here and is left out."""
    found: dict[str, _Named] = {}
    for name in weights:
        trained, kind = _split_name(name, file)
        path = text_name(trained)
        if path is None:
            continue
        names = found.setdefault(classic_path(path), _Named(trained))
        if kind in names:
            raise AdapterError(f"The weights of {path} are there twice.", file=file, field=name)
        names[kind] = name
    return found


class _Named(dict[str, str]):
    """Kind of tensor -> its name, of one module.

    Attributes:
        trained: the path that the module had in training, which the configuration's patterns are for.
    """

    def __init__(self, trained: str) -> None:
        self.trained = trained

    @property
    def is_adapted(self) -> bool:
        return bool(self.keys() - {"base_weight", "base_bias"})


def _targeted(tensors: Mapping[str, _Named], targets: Targets) -> tuple[dict[str, _Named], dict[str, tuple[str, ...]]]:
    """What the configuration adapts, and names of the tensors that it leaves out."""
    chosen = targets.modules(names.trained for names in tensors.values())
    kept: dict[str, _Named] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    for path, names in tensors.items():
        place = fused_place(names.trained)
        if place is not None:
            adapted = _parameter(place, targets) is not None
        else:
            adapted = names.trained in chosen or targets.has_parameter(f"{names.trained}.weight")
        if adapted or not names.is_adapted:
            kept[path] = names
            continue
        # a bias that is not inside of a wrapper is the base's own, which PEFT sets
        own = {kind: name for kind, name in names.items() if kind == "base_bias" and ".base_layer." not in name}
        left_out[path] = tuple(name for kind, name in names.items() if kind not in own)
        if own:
            kept[path] = _Named(names.trained)
            kept[path].update(own)
    return kept, left_out


def _parameter(place: FusedPlace, targets: Targets) -> str | None:
    """Path of the parameter that a wrapper of fused experts adapts; None where the configuration has none for it."""
    adapted = [name for name in PARAMETERS if targets.has_parameter(place.parameter(name))]
    return place.parameter(adapted[-1 - place.depth]) if place.depth < len(adapted) else None


class _Modules:
    """Reads the adapted linears from the tensors that are there; the configuration gives their scales."""

    def __init__(
        self, scales: _Scales, targets: Targets, options: tuple[str, ...], weights: SafetensorsWeights, file: Path
    ) -> None:
        self.scales = scales
        self.targets = targets
        self.options = options
        self.entries = weights.entries
        self.weights = weights
        self.file = file

    def read(self, tensors: Mapping[str, _Named]) -> dict[str, LoraModule]:
        """Path -> module.

        Raises:
            AdapterError: matrices are missing, misshapen, or not of the rank that the configuration says.
        """
        modules: dict[str, LoraModule] = {}
        for path, names in tensors.items():
            if not names.is_adapted:
                continue
            for kind in ("lora_A", "lora_B"):
                if kind not in names:
                    raise AdapterError(f"{kind} of this module is missing.", file=self.file, field=path)
                self.refuse_no_matrix(names[kind])
            place = fused_place(path)
            for module in [self.linear(path, names)] if place is None else self.experts(place, names):
                if len(modules) == MAX_LINEARS:
                    raise self.refuse(path, f"The file adapts more than {MAX_LINEARS:,} linears.")
                if module.path in modules:
                    raise AdapterError(f"The weights of {module.path} are there twice.", file=self.file, field=path)
                modules[module.path] = module
        return modules

    def linear(self, path: str, names: _Named) -> LoraModule:
        a, b = self.entries[names["lora_A"]], self.entries[names["lora_B"]]
        rank = a.shape[0]
        if b.shape[1] != rank:
            raise self.refuse(path, f"lora_A has rank {rank}, lora_B has rank {b.shape[1]}.")
        parameter = f"{names.trained}.weight"
        key = parameter if self.targets.has_parameter(parameter) else names.trained
        declared = self.scales.rank(key)
        if declared != rank:
            raise self.refuse(path, f"The configuration says rank {declared}, the weights have rank {rank}.")
        for kind, option in (("lora_bias", "lora_bias"), ("magnitude", "use_dora")):
            wanted = option in self.options
            _refuse_contradiction(names.get(kind), option, wanted, b.shape[0], path, self.weights, self.file)
        return LoraModule(
            path,
            names["lora_A"],
            names["lora_B"],
            rank,
            self.scales.scale(key),
            a.shape[1],
            b.shape[0],
            bias=names.get("lora_bias"),
            magnitude=names.get("magnitude"),
        )

    def experts(self, place: FusedPlace, names: _Named) -> list[LoraModule]:
        """The linears of all experts that one wrapper stands for."""
        parameter = _parameter(place, self.targets)
        assert parameter is not None
        a, b = self.entries[names["lora_A"]].shape, self.entries[names["lora_B"]].shape
        linears = LINEARS[parameter.rpartition(".")[2]]
        rank = self.scales.rank(parameter)
        experts = count_experts(a[0], rank)
        if experts is None or b[1] != a[0] or b[0] % len(linears):
            raise self.refuse(
                names["lora_A"], f"{list(a)} and {list(b)} are no matrices of rank {rank} for the experts' {parameter}."
            )
        for option, kind in (("use_dora", "magnitude"), ("lora_bias", "lora_bias")):
            if option in self.options or kind in names:
                raise self.refuse(parameter, f"Fused experts do not go together with {option}.")
        return [
            LoraModule(
                place.linear(expert, name),
                names["lora_A"],
                names["lora_B"],
                rank,
                self.scales.scale(parameter),
                a[1],
                b[0] // len(linears),
                share=ExpertShare(expert, experts, part, len(linears)),
            )
            for expert in range(experts)
            for part, name in enumerate(linears)
        ]

    def refuse_no_matrix(self, name: str) -> None:
        entry = self.entries[name]
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise self.refuse(name, f"A matrix is expected, the shape is {list(entry.shape)}.")
        _refuse_type(entry, name, self.file)

    def refuse(self, field: str, problem: str) -> AdapterError:
        return AdapterError(
            problem, file=self.file, field=field, remedy="Take weights and configuration from the same training."
        )


def _refuse_contradiction(
    name: str | None, option: str, wanted: bool, size: int, path: str, weights: SafetensorsWeights, file: Path
) -> None:
    """An option says whether a module has a vector [size]; `name` says which it has."""
    if (name is not None) != wanted:
        vector = {"lora_bias": "bias of lora_B", "use_dora": "magnitude vector of DoRA"}[option]
        problem = f"is missing, the configuration says {option}" if wanted else f"is there without {option}"
        raise AdapterError(
            f"The {vector} {problem}.",
            file=file,
            field=name or path,
            remedy="Take weights and configuration from the same training.",
        )
    if name is not None:
        _refuse_no_vector(weights.entries[name], name, file, size)


def _refuse_no_vector(entry: TensorEntry, name: str, file: Path, size: int | None = None) -> None:
    if len(entry.shape) != 1 or entry.shape[0] == 0 or size not in (None, entry.shape[0]):
        wanted = "A vector" if size is None else f"A vector of {size}"
        raise AdapterError(f"{wanted} is expected, the shape is {list(entry.shape)}.", file=file, field=name)
    _refuse_type(entry, name, file)


def _refuse_type(entry: TensorEntry, name: str, file: Path) -> None:
    if entry.dtype not in ("F32", "F16", "BF16"):
        raise AdapterError(f"The type {entry.dtype} is not supported.", file=file, field=name)


def _split_name(name: str, file: Path) -> tuple[str, str]:
    """`base_model.model.<path>.lora_A.weight` -> path and `lora_A`."""
    if not any(part in name for part in STRANGERS):
        for kind, pattern in KINDS.items():
            if match := pattern.fullmatch(name):
                return match[1], kind
    what = next((text for part, text in STRANGERS.items() if part in name), "tensors of this name")
    raise AdapterError(f"The file holds {what}, which are not supported.", file=file, field=name)


class _Scales:
    """alpha / r of each module, with PEFT's `rank_pattern` and `alpha_pattern`."""

    def __init__(self, config: Mapping[str, Any], file: Path) -> None:
        self.file = file
        self.matcher = Matcher()
        self.default_rank = self._rank(config.get("r", 8), "r")
        self.default_alpha = self._alpha(config.get("lora_alpha", 8), "lora_alpha")
        self.rank_pattern = self._pattern(config, "rank_pattern")
        self.alpha_pattern = self._pattern(config, "alpha_pattern")
        self.rank_stabilised = _flag(config, "use_rslora", file)

    def rank(self, path: str) -> int:
        value = self._match(self.rank_pattern, path)
        return self.default_rank if value is None else self._rank(value, "rank_pattern")

    def scale(self, path: str) -> float:
        value = self._match(self.alpha_pattern, path)
        alpha = self.default_alpha if value is None else self._alpha(value, "alpha_pattern")
        rank = self.rank(path)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    def _match(self, pattern: Mapping[str, Any], path: str) -> object:
        """PEFT's rule: the first key that is the path's end, as a regular expression at a component's start."""
        for key, value in pattern.items():
            try:
                if self.matcher.match(rf"(.*\.)?({key})$", path):
                    return value
            except PatternError as problem:
                raise AdapterError(
                    str(problem),
                    file=self.file,
                    field=f"rank_pattern/alpha_pattern: {key}",
                    remedy="Name the modules by their paths.",
                ) from None
        return None

    def _pattern(self, config: Mapping[str, Any], field: str) -> Mapping[str, Any]:
        value = config.get(field) or {}
        if not isinstance(value, dict):
            raise AdapterError(f"An object is expected, not {json_type(value)}.", file=self.file, field=field)
        return value

    def _rank(self, value: object, field: str) -> int:
        if type(value) is not int or not 1 <= value <= MAX_RANK:
            raise AdapterError(f"{value!r} is not a rank.", file=self.file, field=field)
        return value

    def _alpha(self, value: object, field: str) -> float:
        number = finite_number(value)
        if number is None:
            raise AdapterError(f"{value!r} is not a finite number.", file=self.file, field=field)
        return number
