"""Tiny models that the engine's tests share; made once a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import forms, tiny
from support.hub_server import FakeHub, point_at, serve

from loradesk_engine.commands import LoadSettings
from loradesk_engine.model import device, kernels

torch.set_num_threads(1)  # tiny models: a second thread costs more than it saves


collect_ignore = [] if forms.HAS_KERNELS else ["test_recording.py"]  # recordings are of the kernels' calls


IN_TORCH_AS_WELL_BY_TEST_ALL = (
    "test_architectures.py::test_xlora_equals_peft",
    "test_dora.py::",
    "test_experts.py::",
    "test_lora_options.py::",
    "test_quantized_adapters.py::",
)
"""Tests of what both paths share, the reading of files above all. `make test` runs them with the kernels; the core's
tests (parity, X-LoRA, GGUF, the architectures, generation) run on both paths.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the second path of the tests above to `make test-all`, where there is a first one."""
    named = [item for item in items if item.nodeid.rpartition("/")[2].startswith(IN_TORCH_AS_WELL_BY_TEST_ALL)]
    paths = {
        item: item.callspec.params.get("both_paths")
        for item in named
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    }
    with_kernels = {(item.path, item.originalname) for item, path in paths.items() if path == forms.KERNELS}
    for item, path in paths.items():
        if path == forms.TORCH and (item.path, item.originalname) in with_kernels:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=forms.PATHS)
def both_paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the CPU: the compiled kernels do what they can, and torch does all of it."""
    others = device.available_devices()
    monkeypatch.setattr(device, "available_devices", lambda: ("cpu", *others))
    forms.use(request.param, monkeypatch)
    step = kernels.step_kernels(torch.device("cpu"), torch.float32)
    assert (step is None) == (request.param == forms.TORCH)
    with kernels.used(step) if step is not None else nullcontext():
        yield


@dataclass(frozen=True)
class Zoo:
    """Folders of a base and what belongs to it."""

    base: Path
    adapters: dict[str, Path]
    xlora_peft: Path
    xlora: Path
    xlora_ordering: Path

    def xlora_settings(self, **changes: Any) -> LoadSettings:
        """The X-LoRA through its ordering file, in float32."""
        settings = LoadSettings(
            base=str(self.base),
            mode="xlora",
            xlora=str(self.xlora),
            ordering=str(self.xlora_ordering),
            dtype="float32",
        )
        return replace(settings, **changes)


ALL_LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A base, four adapters of it (of different ranks, alphas and targets), and an X-LoRA over the first three in both
    formats.
    """
    root = tmp_path_factory.mktemp("zoo")
    base = root / "base"
    tiny.make_llama(base)
    adapters = {name: root / name for name in ("adapter_1", "adapter_10", "adapter_2", "wide")}
    tiny.make_lora(base, adapters["adapter_1"], 1, r=4, lora_alpha=8, target_modules=ALL_LINEARS)
    tiny.make_lora(base, adapters["adapter_10"], 2, r=2, lora_alpha=16, target_modules=ALL_LINEARS)
    tiny.make_lora(base, adapters["adapter_2"], 3, r=8, lora_alpha=4, target_modules=ALL_LINEARS, use_rslora=True)
    tiny.make_lora(
        base,
        adapters["wide"],
        4,
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "down_proj", "lm_head"],
        rank_pattern={"q_proj": 6},
        alpha_pattern={"layers.1.mlp.down_proj": 12},
    )
    experts = {name: adapters[name] for name in ("adapter_1", "adapter_10", "adapter_2")}
    xlora_peft, xlora = root / "xlora-peft", root / "xlora"
    tiny.make_xlora(base, xlora_peft, list(experts.values()), layerwise_scalings=True, xlora_depth=2, xlora_size=16)
    tiny.to_xlora_form(xlora_peft, xlora, experts)
    paths = [
        f"model.layers.{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in range(2)
        for name in ALL_LINEARS
    ]
    ordering = tiny.write_ordering(
        root / "xlora-ordering.json",
        order=list(experts),
        layers={path: number for number, path in enumerate(paths)},
        base_model_id=str(base),
    )
    return Zoo(base, adapters, xlora_peft, xlora, ordering)


@pytest.fixture
def hub(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine with a base, an adapter and a gated base; huggingface_hub asks it, with an empty cache."""
    repositories = {"people/tiny": zoo.base, "people/wide": zoo.adapters["wide"], "people/gated": zoo.base}
    with serve(FakeHub(repositories, gated={"people/gated": "secret"})) as server:
        point_at(monkeypatch, server.url, tmp_path / "cache")
        yield server
