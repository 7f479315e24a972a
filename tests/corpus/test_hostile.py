"""Files made to do harm: each is refused with the file and the place, soon, and nothing in it is run.

Most of GGUF's cases are in tests/gguf, those of chat templates in tests/engine/test_text.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.clock import PATIENCE
from support.limits import cheap_reading

from loradesk_engine.commands import Message
from loradesk_engine.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    FileFormatError,
    HubError,
    LoradeskError,
    OrderingError,
)
from loradesk_engine.files import parse_json
from loradesk_engine.formats.adapter_folder import find_adapter
from loradesk_engine.formats.config import parse_config
from loradesk_engine.formats.gguf import read_gguf
from loradesk_engine.formats.gguf_tokenizer import gguf_tokenizer
from loradesk_engine.formats.hub import resolve_source
from loradesk_engine.formats.peft import read_adapter
from loradesk_engine.formats.safetensors import checkpoint_files, read_header
from loradesk_engine.formats.tokenizer import read_tokenizer
from loradesk_engine.formats.xlora import read_xlora
from loradesk_engine.model.base import read_base
from loradesk_engine.ordering.modules import linear_modules, match_targets
from loradesk_engine.ordering.schema import OrderingFile
from loradesk_engine.patterns import Matcher, PatternError

PATHS = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(32) for name in "qkvo"]
SLOW_PATTERNS = [
    r"(([a-z0-9._]+)+)+\$",
    r"(.*)*x\d",
    r"(?:[^x]|[a-z._0-9])*!",
    ".*" * 24 + "!",
    r"((model|layers|\.|\d|self|attn|_|q|proj|o|d|e)*)*!",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "base"
    tiny.make_llama(folder, num_hidden_layers=1)
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    tiny.make_lora(base, tmp_path / "adapter", 1)
    return tmp_path / "adapter"


def edit(path: Path, **changes: Any) -> None:
    values = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(values), encoding="utf-8")


# --- pickles ----------------------------------------------------------------------------------------------------------


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.mark,))


def write_pickle(path: Path, mark: Path, *, archive: bool) -> None:
    data = pickle.dumps(Bomb(mark))
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", data)
    else:
        path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
@pytest.mark.parametrize("archive", [False, True], ids=["bare", "zip"])
def test_pickles_are_refused_by_name_and_never_run(base: Path, tmp_path: Path, suffix: str, archive: bool) -> None:
    mark = tmp_path / "it-ran"
    only = tmp_path / "only"
    shutil.copytree(base, only)
    (only / "model.safetensors").unlink()
    file = only / f"weights{suffix}"
    write_pickle(file, mark, archive=archive)
    loads: list[Callable[[], object]] = [lambda: read_base(only), lambda: read_base(file), lambda: read_adapter(file)]
    shutil.copy(base / "config.json", only / "adapter_config.json")
    loads.append(lambda: read_adapter(only))
    (only / "xlora_config.json").write_text('{"hidden_size": 32}', encoding="utf-8")
    loads.append(lambda: read_xlora(only))
    for load in loads:
        with pytest.raises(LoradeskError, match="pickled") as caught:
            load()
        assert caught.value.file == str(file)
    for name in ("model.safetensors", "adapter.weights"):  # a pickle under another name
        disguised = tmp_path / name
        write_pickle(disguised, mark, archive=archive)
        with pytest.raises((FileFormatError, CheckpointError)) as caught:
            read_header(disguised)
        assert caught.value.file == str(disguised)
    assert not mark.exists()


# --- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
def test_patterns_that_would_match_for_years_end(pattern: str) -> None:
    matcher = Matcher(seconds=0.3)
    found: list[object] = []
    with contextlib.suppress(PatternError):
        found = [path for path in PATHS if matcher.fullmatch(pattern, path)]
    assert not found


@pytest.mark.parametrize("pattern", ["(", "[a", "*a", "a{2,1}", "(?P<x", "\\", "a" * 5000, "(" * 3000])
def test_patterns_that_are_none_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        Matcher().match(pattern, "model")


def test_the_time_is_that_of_all_patterns_together() -> None:
    """Each a little slow, so that none is stopped by itself: the sum is."""
    matcher = Matcher(seconds=0.05)

    def match_all() -> None:
        for number in range(100_000):
            matcher.fullmatch(rf"(.*\.)*({number}|.*)*(.*)*{number}!", PATHS[-1])

    with pytest.raises(PatternError, match="too long"):
        match_all()


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", [*SLOW_PATTERNS, "(", "x" * 5000])
def test_hostile_patterns_of_an_adapter(adapter: Path, field: str, pattern: str) -> None:
    config = adapter / "adapter_config.json"
    edit(config, **{field: {pattern: 4}})
    try:
        read_adapter(adapter)  # some are fast enough after all
    except AdapterError as problem:
        refusal = problem
        assert refusal.file == str(config)
        assert field in (refusal.field or "")


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern"])
@pytest.mark.parametrize("pattern", [*SLOW_PATTERNS, "("])
def test_hostile_patterns_of_target_modules(field: str, pattern: str) -> None:
    options: dict[str, Any] = {"target_modules": ["q_proj"], "layers_to_transform": [1], field: pattern}
    if field == "target_modules":
        del options["layers_to_transform"]
    try:
        match_targets(PATHS, **options)
    except ConfigError as problem:
        refusal = problem
        assert refusal.field == field


# --- tokenizers -------------------------------------------------------------------------------------------------------


def with_tokenizer(base: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(base, folder)
    edit(folder / "tokenizer.json", **changes)
    return folder


SHORT_MERGE = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "###", "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False, "vocab": {"a": 0, "é": 1, "aé": 2}, "merges": [["a", "é"]],
}  # fmt: skip
GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def test_a_merge_that_panics_the_library(base: Path, tmp_path: Path) -> None:
    """A panic is a BaseException: it passes every `except Exception`."""
    folder = with_tokenizer(base, tmp_path / "x", model=SHORT_MERGE)
    with pytest.raises(ConfigError) as caught:
        read_tokenizer(folder)
    assert caught.value.file == str(folder / "tokenizer.json")


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            },
            id="a pattern that gives up",
        ),
        pytest.param(
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"Sequence": {"id": "B", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {},
                }
            },
            id="a second text that is not there",
        ),
    ],
)
def test_a_tokenizer_that_panics_when_it_is_used(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    tokenizer = read_tokenizer(with_tokenizer(base, tmp_path / "x", **changes))
    with pytest.raises(ConfigError) as caught:
        tokenizer.encode("a" * 60 + "!", special_tokens=True)
    assert caught.value.file == str(tmp_path / "x" / "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [GROWING] * 40}}, "normalizer"),
        ({"normalizer": {**GROWING, "content": "a" * 100_000}}, "normalizer"),
        ({"decoder": {**GROWING, "content": "a" * 100_000}}, "decoder"),
    ],
)
def test_texts_cannot_be_made_to_grow_without_end(
    base: Path, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_tokenizer(with_tokenizer(base, tmp_path / "x", **changes))
    assert caught.value.field == field


def test_padding_and_truncation_of_the_training_are_not_taken_over(base: Path, tmp_path: Path) -> None:
    """A billion padding tokens would end the process; a short truncation would cut conversations silently."""
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    tokenizer = read_tokenizer(with_tokenizer(base, tmp_path / "x", padding=padding, truncation=truncation))
    plain = read_tokenizer(base)
    messages = [Message("user", "a conversation that is longer than four tokens")]
    assert tokenizer.chat_ids(messages) == plain.chat_ids(messages)


# --- GGUF files whose work or memory would grow faster than they do ---------------------------------------------------


def gguf_file(path: Path, tokens: list[str], types: list[int], kind: str) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_vocabulary_of_every_run_of_a_letter(tmp_path: Path) -> None:
    """3,000 pieces in 4.5 MB: every cut of every piece is a merge, 4.5 million of them, 18 GB."""
    path = gguf_file(tmp_path / "m.gguf", ["a" * size for size in range(1, 3001)], [1] * 3000, "llama")
    with cheap_reading(path), pytest.raises(FileFormatError, match="merges, our limit") as caught:
        gguf_tokenizer(read_gguf(path).metadata, path)
    assert (caught.value.file, caught.value.field) == (str(path), "tokenizer.ggml.tokens")


def test_a_vocabulary_that_is_just_within_the_limit(tmp_path: Path) -> None:
    """As many merges as are read at most cost no more memory than other files do."""
    tokens = [f"{chr(0x4E00 + run)}" * size for run in range(1000) for size in range(1, 18)]
    path = gguf_file(tmp_path / "m.gguf", tokens, [1] * len(tokens), "llama")
    with cheap_reading(path):
        tokenizer = gguf_tokenizer(read_gguf(path).metadata, path)
    assert tokenizer.token_text(16_999) == tokens[-1]


def test_tens_of_thousands_of_control_tokens(tmp_path: Path) -> None:
    """The library prepares its search at every call: one for each token is quadratic, 23 s for half as many."""
    tokens = ["a", "b", "ab", *(f"<|{number}|>" for number in range(25_600))]
    path = gguf_file(tmp_path / "m.gguf", tokens, [1, 1, 1, *[3] * 25_600], "gpt2")
    with cheap_reading(path):
        tokenizer = gguf_tokenizer(read_gguf(path).metadata, path)
        assert tokenizer.encode("<|25599|>ab<|0|>") == [25_602, 2, 3]


def test_stacks_of_experts_that_are_not_there(tmp_path: Path) -> None:
    """128 matrices of 4,095 experts in 2 MiB: half a million names, if they were unfolded."""
    import gguf

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {"block_count": 128, "embedding_length": 1, "feed_forward_length": 1, "attention.head_count": 1,
               "attention.key_length": 2, "context_length": 64, "expert_count": 8}  # fmt: skip
    for key, value in numbers.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((8, 1), np.float32))
    for block in range(128):
        writer.add_tensor(f"blk.{block}.ffn_gate_exps.weight", np.zeros((4095, 1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with cheap_reading(path), pytest.raises(FileFormatError) as caught:
        read_base(path)
    assert (caught.value.file, caught.value.field) == (str(path), "blk.0.ffn_gate_exps.weight")


# --- numbers and names ------------------------------------------------------------------------------------------------


def test_counts_that_multiply_are_refused_before_anything_is_made() -> None:
    config = {"architectures": ["MixtralForCausalLM"], "num_hidden_layers": 4000, "num_local_experts": 1000}
    with pytest.raises(ConfigError) as caught:
        linear_modules(config)
    assert caught.value.field == "num_hidden_layers"
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64}
    with pytest.raises(ConfigError):
        parse_config({**config, **sizes}, "config.json")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
@pytest.mark.parametrize("field", ["rms_norm_eps", "rope_theta", "hidden_size"])
def test_numbers_that_are_none(base: Path, tmp_path: Path, value: str, field: str) -> None:
    folder = tmp_path / "x"
    shutil.copytree(base, folder)
    text = json.dumps({**json.loads((folder / "config.json").read_text()), field: "@"})
    (folder / "config.json").write_text(text.replace('"@"', value), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_base(folder)
    assert caught.value.file == str(folder / "config.json")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\0b", "..", "", "x/y", "\x1b[2J", "a" * 300])
def test_shards_outside_the_folder(base: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "x"
    shutil.copytree(base, folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises((CheckpointError, FileFormatError)) as caught:
        [read_header(path) for path in checkpoint_files(folder)]
    assert caught.value.file is not None
    assert caught.value.file.startswith(str(folder))


@pytest.mark.parametrize("name", ["../adapter", "/etc", "a\0b", "..", ".", "", "a" * 300, "*", "a\x1b[2Jb"])
def test_adapter_names_that_are_no_names(base: Path, tmp_path: Path, name: str, adapter: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    with pytest.raises(AdapterError) as caught:
        find_adapter(checkpoint, name, [name])
    assert caught.value.file == str(checkpoint)
    with pytest.raises(HubError):
        resolve_source(f"{name}/nowhere", near=checkpoint, fetch=False)


def test_a_message_shows_what_a_file_holds_without_its_control_characters() -> None:
    error = FileFormatError("\x1b[2J" + "x" * 100_000, file="a\x07b", field="\x9b31m")
    assert "\x1b" not in str(error)
    assert "\x07" not in str(error)
    assert "\x9b" not in str(error)
    assert len(str(error)) < 5000


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"a":' * 10**5, '"\\ud800"', '{"a": 1, "a": 2}', "[1, NaN]", "1" * 10**5, "\x00", "\ufeff\ufeff1"],
    ids=["lists", "objects", "half a character", "a key twice", "NaN", "a long number", "NUL", "two marks"],
)
def test_json_that_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError) as caught:
        parse_json(text.encode(), file="x.json")
    assert caught.value.file == "x.json"
    path = tmp_path / "ordering.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(OrderingError) as refused:
        OrderingFile.read(path)
    assert refused.value.file == str(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.timeout(PATIENCE)  # it would wait for a writer for ever
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_waited_for(base: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "x"
    shutil.copytree(base, folder)
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(LoradeskError, match="not an ordinary file") as caught:
        read_base(folder).tokenizer()
    assert caught.value.file == str(folder / name)
    assert caught.value.remedy


def test_the_safetensors_of_a_model_may_be_chosen_themselves(base: Path) -> None:
    assert read_base(base / "model.safetensors").config == read_base(base).config
    assert torch.equal(
        read_base(base / "model.safetensors").weights()["model.norm.weight"],
        read_base(base).weights()["model.norm.weight"],
    )


def test_an_ordering_file_is_not_read_without_end(tmp_path: Path) -> None:
    path = tmp_path / "ordering.json"
    path.write_bytes(b"[" * (5 * 2**20))
    with pytest.raises(OrderingError, match="over the limit") as caught:
        OrderingFile.read(path)
    assert caught.value.file == str(path)
