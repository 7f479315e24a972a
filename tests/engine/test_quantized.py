"""Products with quantized matrices, against the gguf package's weights in float64."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
import transformers
from support import gguf_files, tiny
from support.blocks import input_codes, random_blocks, weights
from support.forms import HAS_KERNELS
from support.precision import Codes, Reference, reference, whole_pass

from loradesk_engine.commands import LoadSettings
from loradesk_engine.errors import CheckpointError
from loradesk_engine.generation import loading as loading_module
from loradesk_engine.generation.engine import EngineCore
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.dequantize import QUANTIZATIONS
from loradesk_engine.model.native.matrix import NativeMatrix
from loradesk_engine.model.planes import PlaneMatrix
from loradesk_engine.model.quantized import PackedLinear, PackedMatrix, fuse_packed, held_nbytes
from loradesk_engine.model.table import FEW_ROWS, NIBBLE_COLUMNS, TableMatrix

# whole chunks; chunks to fill up; an odd number of rows in half bytes
SHAPES = [(576, 512), (300, 768), (515, NIBBLE_COLUMNS)]
CPU = torch.device("cpu")

every_type = pytest.mark.parametrize("kind", list(QUANTIZATIONS))
Form = type[NativeMatrix | TableMatrix | PlaneMatrix]
every_form = pytest.mark.parametrize("form", [*([NativeMatrix] if HAS_KERNELS else []), TableMatrix, PlaneMatrix])


def assert_product(y: torch.Tensor, x: torch.Tensor, expected: torch.Tensor, codes: Codes | None = None) -> None:
    """Against torch's product in the same type, of inputs that are rounded as the form rounds them."""
    assert y.dtype == x.dtype
    read = x if codes is None else codes.rounded(x)
    Reference(x.double() @ expected.t(), read @ expected.t().to(x.dtype)).assert_near(y)


# --- products ---------------------------------------------------------------------------------------------------------


@every_type
@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_float64(kind: str, form: Form, shape: tuple[int, int]) -> None:
    raw, expected = weights(kind, *shape)
    matrix = form.of(raw, kind, *shape)
    codes = input_codes(kind) if form is NativeMatrix else None
    generator = torch.Generator().manual_seed(1)
    for count in (1, 2, 5, FEW_ROWS, FEW_ROWS + 1, 40):
        x = torch.randn(count, shape[1], generator=generator)
        assert_product(matrix(x), x, expected, codes)
    for few in (x, x[:3]):  # inputs in another layout
        assert_product(matrix(few.t().contiguous().t()), few, expected, codes)
    assert matrix(x[:0]).shape == (0, shape[0])


@every_type
def test_products_of_bfloat16_are_rounded_once(kind: str) -> None:
    raw, expected = weights(kind, 300, 768)
    matrix = TableMatrix.of(raw, kind, 300, 768)
    for count in (1, 40):
        x = torch.randn(count, 768, generator=torch.Generator().manual_seed(2)).bfloat16()
        assert_product(matrix(x), x, expected)


@every_type
def test_half_bytes_on_one_thread_and_on_two_are_the_same(kind: str) -> None:
    raw, _ = weights(kind, 515, NIBBLE_COLUMNS)
    matrix = TableMatrix.of(raw, kind, 515, NIBBLE_COLUMNS)
    x = torch.randn(2, NIBBLE_COLUMNS, generator=torch.Generator().manual_seed(3))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = matrix(x)
        torch.set_num_threads(2)
        assert torch.equal(matrix(x), alone)
    finally:
        torch.set_num_threads(before)


@every_type
def test_a_row_is_the_same_whatever_is_beside_it(kind: str) -> None:
    raw, expected = weights(kind, 576, 512)
    matrix = TableMatrix.of(raw, kind, 576, 512)
    x = torch.randn(FEW_ROWS, 512, generator=torch.Generator().manual_seed(4))
    exact = x.double() @ expected.t()
    Reference(exact, matrix(x)).assert_near(torch.cat([matrix(row[None]) for row in x]))


@every_type
@every_form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_looked_up(kind: str, form: Form, shape: tuple[int, int]) -> None:
    raw, expected = weights(kind, *shape)
    rows = torch.tensor([shape[0] - 1, 0, 7, 256, 7])
    found = form.of(raw, kind, *shape).rows_at(rows, torch.float32)
    assert torch.equal(found, expected[rows].float())


@every_form
def test_bytes_that_do_not_fit_are_refused(form: Form) -> None:
    with pytest.raises(CheckpointError, match="cannot hold"):
        form.of(torch.zeros(4, 33, dtype=torch.uint8), "Q8_0", 4, 32)


# --- memory -----------------------------------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_is_what_the_estimate_says(kind: str, shape: tuple[int, int]) -> None:
    raw, _ = weights(kind, *shape)
    on_cpu = PackedMatrix(raw, kind, *shape).on(CPU)
    assert on_cpu.nbytes == held_nbytes(kind, *shape, CPU)
    planes = PlaneMatrix.of(raw, kind, *shape)
    assert planes.nbytes == held_nbytes(kind, *shape, torch.device("cuda"))


@pytest.mark.parametrize(("kind", "most"), [("Q4_0", 0.65), ("Q4_K", 0.77), ("Q8_0", 1.17), ("Q6_K", 1.29)])
def test_wide_matrices_of_four_bits_take_half_a_byte_a_weight(kind: str, most: float) -> None:
    assert held_nbytes(kind, 4096, 4096, CPU) <= most * 4096 * 4096


# --- several as one ---------------------------------------------------------------------------------------------------


@every_type
@every_form
def test_several_of_one_input_are_one_product(kind: str, form: Form) -> None:
    columns, linears, expected = 512, [], []
    for number, rows in enumerate((576, 192, 192)):
        raw, values = weights(kind, rows, columns, seed=number)
        bias = torch.randn(rows, generator=torch.Generator().manual_seed(number))
        linears.append(PackedLinear(f"part{number}", number, form.of(raw, kind, rows, columns), bias))
        expected.append(values)
    x = torch.randn(3, columns, generator=torch.Generator().manual_seed(5))
    apart = [linear(x) for linear in linears]
    held = sum(linear.nbytes for linear in linears)
    fused = fuse_packed(linears)
    assert fused is not None
    y = fused(x)
    exact = x.double() @ torch.cat(expected).t() + torch.cat([linear.bias for linear in linears])
    Reference(exact, torch.cat(apart, dim=-1)).assert_near(y)
    codes = input_codes(kind) if form is NativeMatrix else None
    assert_product(y - torch.cat([linear.bias for linear in linears]), x, torch.cat(expected), codes)
    # the parts still work, and take no more memory than before
    Reference(exact, y).assert_near(torch.cat([linear(x) for linear in linears], dim=-1))
    assert sum(linear.nbytes for linear in linears) == held


@every_form
@pytest.mark.parametrize("other", [("Q6_K", 512), ("Q4_1", 1024)], ids=str)
def test_what_does_not_fit_together_stays_apart(form: Form, other: tuple[str, int]) -> None:
    linears = [
        PackedLinear("part", 0, form.of(weights(kind, 256, columns)[0], kind, 256, columns))
        for kind, columns in (("Q4_1", 512), other)
    ]
    assert fuse_packed(linears) is None


# --- whole models -----------------------------------------------------------------------------------------------------


@every_type
@pytest.mark.parametrize("tied", [False, True], ids=["two matrices", "tied"])
def test_a_model_of_every_type(kind: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of a prefill and of steps against transformers on the weights that the file stands for."""
    monkeypatch.setattr(loading_module, "keeps_packed", lambda parameters, device: True)
    made = iter(range(100))
    monkeypatch.setattr(  # the package quantizes to some types only
        gguf.quants, "quantize", lambda data, kind: random_blocks(kind.name, *data.shape, seed=next(made))[0]
    )
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "tie_word_embeddings": tied}
    config = transformers.LlamaConfig(**{**tiny.SMALL, **sizes}, pad_token_id=0, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(gguf_files.write(model, tmp_path / "m.gguf", "llama", kind), strict=False)
    model.tie_weights()
    decoder = EngineCore.load(LoadSettings(base=str(tmp_path / "m.gguf"), dtype="float32")).decoder
    assert all(isinstance(linear, PackedLinear) for linear in decoder.linears)
    ids = torch.randint(0, 256, (24,), generator=torch.Generator().manual_seed(6))
    cache = decoder.new_cache()
    cache.reserve(1, len(ids))
    with torch.inference_mode():
        found = []
        for first, last in ((0, 20), (20, 21), (21, 24)):
            batch = Batch(ids[first:last], torch.arange(first, last), (Segment(0, 0, last - first, first),))
            found.append(decoder.logits(decoder.forward(batch, cache)))
    reference(model, whole_pass(ids), input_codes(kind)).assert_near(torch.cat(found))
