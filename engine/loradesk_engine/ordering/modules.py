"""The linears of a model, by name and in order, from its config.json alone.

The index of a module in `layers` is its rank in the order in which the Hugging Face class registers its modules: the
order in which PEFT and xlora meet them when they put adapters in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loradesk_engine.architectures.architecture import Architecture
from loradesk_engine.architectures.registry import CLASSES, FAMILIES, IMAGE_CLASSES, MODEL_TYPES
from loradesk_engine.errors import ConfigError
from loradesk_engine.files import json_type
from loradesk_engine.patterns import Matcher, PatternError

OUTPUT_LAYER = "lm_head"
EMBEDDING = "model.embed_tokens"
ALL_LINEAR = "all-linear"
MAX_LAYERS = 16_384
MAX_EXPERTS = 1_024
MAX_DIGITS = 9  # of a layer's number in a path
MAX_LINEARS = 2**17  # in all; the largest mixtures of experts have half as many

_OF_THE_WHOLE = ("architectures", "eos_token_id", "quantization_config", "tie_word_embeddings")


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config.json of the text model in one that also sees images; any other as it is.

    Raises:
        ConfigError: it has no `text_config`.
    """
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or architectures[0] not in IMAGE_CLASSES:
        return config
    text = config.get("text_config")
    if not isinstance(text, dict):
        problem = "The part is missing." if text is None else f"An object is expected, not {json_type(text)}."
        raise ConfigError(problem, field="text_config")
    outer = {key: config[key] for key in _OF_THE_WHOLE if config.get(key) is not None}
    # the whole model's class ties its output layer to the embedding whatever the text part says
    return {**text, "tie_word_embeddings": True, **outer}


def family_of(config: Mapping[str, Any]) -> Architecture:
    """The family that a config.json names by its class, or by `model_type` where it names no class.

    Raises:
        ConfigError: the architecture is not supported or not named; lists those that are.
    """
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        field, named, known = "architectures", architectures[0], CLASSES
    else:
        field, named, known = "model_type", config.get("model_type"), MODEL_TYPES
    found = known.get(named) if isinstance(named, str) else None
    if found is None:
        problem = f"The architecture {named!r} is not supported." if named else "The file names no architecture."
        raise ConfigError(problem, field=field, remedy=f"Supported are {', '.join(sorted(CLASSES))}.")
    return found


def linear_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Full paths of all linears of a model in the order of registration, `lm_head` last.

    Raises:
        ConfigError: unsupported architecture, or the number of layers or experts is missing or out of range.
    """
    family = family_of(config)
    config = text_part(config)
    experts = 0 if family.names.experts is None else _count(config, "num_local_experts", MAX_EXPERTS)
    return linear_paths(family, _count(config, "num_hidden_layers", MAX_LAYERS), experts)


def linear_paths(family: Architecture, layers: int, experts: int) -> tuple[str, ...]:
    """`linear_modules` of a model with so many layers and experts.

    Raises:
        ConfigError: they are too many together.
    """
    block = family.linears(experts)
    if layers * len(block) > MAX_LINEARS:
        raise ConfigError(
            f"{layers:,} layers of {len(block):,} linears are over our limit of {MAX_LINEARS:,}.",
            field="num_hidden_layers",
        )
    return (*(f"model.layers.{n}.{name}" for n in range(layers) for name in block), OUTPUT_LAYER)


def adaptable_modules(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The embedding and the linears, in the order of registration: what an ordering file may number.

    Raises:
        ConfigError: as `linear_modules`.
    """
    return (EMBEDDING, *linear_modules(config))


def target_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The last parts of the modules' paths, each once, in order: what people write as target modules.

    Raises:
        ConfigError: as `linear_modules`.
    """
    return tuple(dict.fromkeys(path.rpartition(".")[2] for path in adaptable_modules(config)))


def match_targets(
    paths: Iterable[str],
    target_modules: str | Sequence[str],
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    exclude_modules: str | Sequence[str] | None = None,
    matcher: Matcher | None = None,
) -> tuple[str, ...]:
    """The paths that PEFT would adapt, in their order.

    A list matches whole components at the end of a path; a string is a regular expression for the whole path;
    `all-linear` is every linear but the output layer, and not the embedding. `layers_to_transform` goes with a list
    only, and there it limits the names that are not a whole path (so not `lm_head`). Patterns are matched within
    `matcher`'s time.

    Raises:
        ConfigError: a pattern is not a valid regular expression, or layers are chosen without a list of names.
    """
    matcher = matcher or Matcher()
    if isinstance(target_modules, str):
        for field, value in (("layers_to_transform", layers_to_transform), ("layers_pattern", layers_pattern)):
            if value is not None and value not in ([], ""):
                raise ConfigError(f"{field} needs target modules as a list, not a string.", field=field)
        if target_modules.lower() != ALL_LINEAR:
            return tuple(
                path
                for path in paths
                if _match(matcher, target_modules, path, "target_modules")
                and not _excluded(path, exclude_modules, matcher)
            )
        linears = (path for path in paths if path not in (EMBEDDING, OUTPUT_LAYER))
        return tuple(path for path in linears if not _excluded(path, exclude_modules, matcher))
    targets = frozenset(target_modules)
    indices = _layer_indices(layers_to_transform)
    patterns = _layer_patterns(layers_pattern)
    return tuple(
        path
        for path in paths
        if (path in targets or (_ends_with(path, targets) and _in_layers(path, indices, patterns, matcher)))
        and not _excluded(path, exclude_modules, matcher)
    )


def number_layers(paths: Iterable[str]) -> dict[str, int]:
    """The `layers` of an ordering file: path -> its rank."""
    return {path: index for index, path in enumerate(paths)}


def quantized_names(config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Names of the layers that adapters may sit on when the base is quantized; without a config, those of any model."""
    try:
        families: tuple[Architecture, ...] = FAMILIES if config is None else (family_of(config),)
    except ConfigError:
        families = FAMILIES
    return (*dict.fromkeys(name for family in families for name in family.quantized), OUTPUT_LAYER)


def unsupported_on_quantized(paths: Iterable[str], config: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Those of the paths that adapters may not sit on when the base is quantized."""
    supported = frozenset(quantized_names(config))
    return tuple(path for path in paths if not _ends_with(path, supported))


def _count(config: Mapping[str, Any], field: str, limit: int) -> int:
    value = config.get(field)
    if type(value) is not int:
        problem = "The number is missing." if value is None else f"A whole number is expected, not {json_type(value)}."
        raise ConfigError(problem, field=field)
    if not 1 <= value <= limit:
        raise ConfigError(f"{value} is not from 1 to {limit:,}.", field=field)
    return value


def _ends_with(path: str, names: frozenset[str]) -> bool:
    """Whether whole components at the end of a path are one of the names."""
    while path not in names:
        _, dot, path = path.partition(".")
        if not dot:
            return False
    return True


def _excluded(path: str, exclude_modules: str | Sequence[str] | None, matcher: Matcher) -> bool:
    if not exclude_modules:
        return False
    if isinstance(exclude_modules, str):
        return _match(matcher, exclude_modules, path, "exclude_modules") is not None
    return _ends_with(path, frozenset(exclude_modules))


def _layer_indices(layers_to_transform: int | Sequence[int] | None) -> frozenset[int] | None:
    if isinstance(layers_to_transform, int):
        return frozenset((layers_to_transform,))
    return frozenset(layers_to_transform) if layers_to_transform else None


def _layer_patterns(layers_pattern: str | Sequence[str] | None) -> list[str]:
    if not layers_pattern:
        return [r".*?\.[^.]*\.(?P<idx>\d+)\..*"]  # the first number in the path, whatever it counts
    names = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern
    return [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\..*" for name in names]


def _in_layers(path: str, indices: frozenset[int] | None, patterns: list[str], matcher: Matcher) -> bool:
    if indices is None:
        return True
    matches = (_match(matcher, pattern, path, "layers_pattern") for pattern in patterns)
    found = next((match for match in matches if match), None)
    number = found["idx"] if found is not None else None  # None too where a pattern's own alternatives leave it out
    return number is not None and len(number) <= MAX_DIGITS and number.isdecimal() and int(number) in indices


def _match(matcher: Matcher, pattern: str, path: str, field: str) -> Any:
    """The match of a whole path; a pattern that is not valid or too slow is an error with the field."""
    try:
        return matcher.fullmatch(pattern, path)
    except PatternError as problem:
        raise ConfigError(str(problem), field=field, remedy="Name the modules by their paths.") from None
