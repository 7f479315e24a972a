"""Triton's products with quantized matrices, against the gguf package's weights in float64."""

from __future__ import annotations

import pytest
import torch
from support.blocks import weights
from support.precision import product

from loradesk_engine.model.dequantize import QUANTIZATIONS
from loradesk_engine.model.planes import _TRIED, PlaneMatrix

SHAPES = [(576, 512), (300, 768), (515, 2048), (20_000, 256)]  # the last one in a single share


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", list(QUANTIZATIONS))
@torch.inference_mode()
def test_products_equal_float64(kind: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    raw, expected = weights(kind, *shape)
    on_device = expected.to("cuda", dtype)
    matrix = PlaneMatrix.of(raw.cuda(), kind, *shape)
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 3, 8, 17, 32, 33, 64, 65):
        x = torch.randn(count, shape[1], generator=generator).to(dtype)
        y = matrix(x.cuda())
        assert all(_TRIED.values()), "a kernel was not trusted"
        assert y.dtype == dtype
        product(x.double(), expected, (x.cuda() @ on_device.t()).cpu()).assert_near(y.cpu())
