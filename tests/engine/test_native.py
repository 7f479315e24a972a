"""The kernels compiled from C, in each form that this processor runs, against float64. Plain C is what ARM gets."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from threading import Barrier

import gguf
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.clock import pause
from support.precision import Reference
from torch import Tensor

from loradesk_engine.formats.gguf import BLOCKS
from loradesk_engine.model.batch import Batch, Segment
from loradesk_engine.model.dequantize import QUANTIZATIONS
from loradesk_engine.model.kernel_protocol import AdapterPart
from loradesk_engine.model.native import forms, library
from loradesk_engine.model.native.matrix import TYPES, NativeMatrix, NativeProduct
from loradesk_engine.model.native.step import NativeStep

COUNTS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 40)
"""Rows of an input: every count that a kernel is compiled for. Plain numbers go through floats from 12 on."""
FEW = 11
PLAIN = (torch.float32, torch.bfloat16, torch.float16)
NAN = float("nan")

every_type = pytest.mark.parametrize("kind", list(TYPES))


@pytest.fixture(params=forms.runnable())
def functions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The library in each form, which the engine uses too within the test, with two threads."""
    monkeypatch.setenv(forms.VARIABLE, request.param)
    monkeypatch.setattr(library, "threads", 2)
    return library.functions()


@pytest.fixture
def step(functions: ctypes.CDLL) -> NativeStep:
    return NativeStep(functions)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def strided(*shape: int, seed: int = 0) -> Tensor:
    """Rows that do not follow each other at once."""
    return normal(shape[0], shape[1] + 13, seed=seed)[:, 5 : 5 + shape[1]]


def same(found: Tensor, expected: Tensor) -> bool:
    """Whether they are equal bit for bit, NaN included."""
    return torch.equal(found.contiguous().view(torch.int32), expected.contiguous().view(torch.int32))


def assert_near(found: Tensor, expected: Tensor, own: Tensor) -> None:
    """expected: float64; own: of torch, in float32."""
    assert expected.dtype == torch.float64
    Reference(expected, own).assert_near(found)


def summed_in_order(x: Tensor, weight: Tensor) -> Tensor:
    """x weight' by numpy in float32, one column after the other as the kernels add them: many columns of it lose more
    digits than torch's product, which adds up parts.
    """
    terms = x.numpy()[:, None] * weight.numpy()
    return torch.from_numpy(np.cumsum(terms, axis=-1, dtype=np.float32)[..., -1])


def rounding(x: Tensor, values: Tensor, group: int) -> Tensor:
    """How far products may be off because rows are rounded to 16 bits in groups of columns. float64 [rows, outputs]"""
    most = x.double().view(x.shape[0], -1, group).abs().amax(dim=-1)
    step = (most / 32767).repeat_interleave(group, dim=1)
    return (0.5 + 1e-3) * step @ values.double().abs().t()  # the quotient itself is of float32


def assert_products(found: Tensor, x: Tensor, values: Tensor, kind: str) -> None:
    """Each product within what rounding the inputs may do, beside what float32 does to all of them."""
    expected = x.double() @ values.double().t()
    assert found.shape == expected.shape
    allowed = rounding(x, values, QUANTIZATIONS[kind].group) + Reference(expected, x @ values.t()).allowed
    assert ((found.double() - expected).abs() <= allowed).all()


def on_threads(monkeypatch: pytest.MonkeyPatch, work: Callable[[], Tensor]) -> list[Tensor]:
    """What the work gives on one thread, two and five."""
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(library, "threads", threads)
        results.append(work())
    return results


# --- products ---------------------------------------------------------------------------------------------------------


@cache
def blocks(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random blocks of middling numbers, uint8 [rows, bytes], and what the gguf package reads in them, float32."""
    elements, size = BLOCKS[kind]
    wanted = rows * columns // elements
    rng = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    while sum(map(len, found)) < wanted:
        drawn = rng.integers(0, 256, (8 * wanted, size), np.uint8)
        with np.errstate(all="ignore"):  # most of them hold huge, tiny and no numbers
            largest = np.abs(gguf.quants.dequantize(drawn, gguf.GGMLQuantizationType[kind])).max(axis=1)
        found.append(drawn[(largest > 0.01) & (largest < 1)])
    raw = np.concatenate(found)[:wanted]
    values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(raw.reshape(rows, -1)), torch.from_numpy(values.reshape(rows, columns))


def quantized(kind: str, rows: int, columns: int, seed: int = 0) -> tuple[NativeMatrix, Tensor]:
    raw, values = blocks(kind, rows, columns, seed)
    return NativeMatrix.of(raw, kind, rows, columns), values


@every_type
@pytest.mark.parametrize("shape", [(5, 256), (32, 512), (97, 768)], ids=str)
def test_products_equal_float64(functions: ctypes.CDLL, kind: str, shape: tuple[int, int]) -> None:
    matrix, values = quantized(kind, *shape)
    for count in COUNTS:
        x = normal(count, shape[1], seed=count)
        assert_products(matrix(x), x, values, kind)
    assert matrix(x[:0]).shape == (0, shape[0])


@every_type
def test_rounded_inputs_are_off_by_as_little_as_16_bits_are(functions: ctypes.CDLL, kind: str) -> None:
    matrix, values = quantized(kind, 97, 768)
    x = normal(40, 768)
    expected = x.double() @ values.double().t()
    error = (matrix(x).double() - expected).square().mean().sqrt()
    half = (x.bfloat16().double() @ values.double().t() - expected).square().mean().sqrt()
    assert error < half / 50


@every_type
def test_inputs_of_any_size_are_rounded_alike(functions: ctypes.CDLL, kind: str) -> None:
    matrix, values = quantized(kind, 33, 256)
    x = normal(3, 256)
    for size in (1e-25, 1e-8, 1e8, 1e25):
        assert_products(matrix(x * size), x * size, values, kind)
    assert not matrix(torch.zeros(2, 256)).any()
    assert matrix(torch.full((2, 256), 1e-38)).isfinite().all()


@every_type
def test_products_do_not_depend_on_the_inputs_layout(functions: ctypes.CDLL, kind: str) -> None:
    matrix, _ = quantized(kind, 97, 768)
    for count in (1, 3, 13):
        x = strided(count, 768)
        assert same(matrix(x), matrix(x.contiguous()))
        assert same(matrix(x.t().contiguous().t()), matrix(x.contiguous()))
        assert same(matrix(x[:1].expand(count, -1)), matrix(x[:1].repeat(count, 1)))
        short = x.bfloat16()
        assert torch.equal(matrix(short), matrix(short.float()).bfloat16())


@pytest.mark.parametrize(
    "kinds", [("Q4_0", "Q5_1", "Q4_K", "IQ4_NL", "Q8_0"), ("Q2_K", "Q3_K", "Q6_K")], ids=["groups of 32", "of 16"]
)
def test_matrices_side_by_side_are_those_matrices(functions: ctypes.CDLL, kinds: Sequence[str]) -> None:
    matrices = [quantized(kind, rows, 768)[0] for kind, rows in zip(kinds, (33, 7, 64, 100, 32), strict=False)]
    product = NativeProduct.of(matrices)
    assert product is not None
    for count in COUNTS:
        x = strided(count, 768)
        assert same(product(x), torch.cat([matrix(x) for matrix in matrices], dim=1))


def test_matrices_of_other_groups_or_columns_stay_apart(functions: ctypes.CDLL) -> None:
    first, _ = quantized("Q4_0", 32, 512)
    for other, columns in (("Q6_K", 512), ("Q4_0", 768)):
        assert NativeProduct.of([first, quantized(other, 32, columns)[0]]) is None


@every_type
def test_rows_are_looked_up_as_they_are(functions: ctypes.CDLL, kind: str) -> None:
    matrix, values = quantized(kind, 97, 768)
    rows = torch.tensor([96, 0, 31, 32, 16, 96, 47])
    assert torch.equal(matrix.rows_at(rows, torch.float32), values[rows])
    assert torch.equal(matrix.rows_at(rows[::2], torch.bfloat16), values[rows[::2]].bfloat16())
    assert matrix.rows_at(rows[:0], torch.float32).shape == (0, 768)


@pytest.mark.parametrize("row", [-1, 97, 2**40])  # 97: its chunk has room for it
def test_rows_that_are_not_there_are_refused(functions: ctypes.CDLL, row: int) -> None:
    matrix, _ = quantized("Q4_0", 97, 768)
    with pytest.raises(IndexError, match="a matrix of 97"):
        matrix.rows_at(torch.tensor([3, row]), torch.float32)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (31, 3), (33, 257), (96, 1021)], ids=str)
def test_products_of_plain_numbers_equal_float64(
    functions: ctypes.CDLL, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = strided(*shape).to(dtype)
    matrix = NativeMatrix.of_plain(weight)
    for count in COUNTS:
        x = strided(count, shape[1], seed=count)
        assert_near(matrix(x), x.double() @ weight.double().t(), summed_in_order(x, weight.float()))


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_plain_numbers_are_looked_up_as_they_are(functions: ctypes.CDLL, dtype: torch.dtype) -> None:
    weight = normal(33, 9).to(dtype)
    weight[32, :5] = torch.tensor([float("inf"), -0.0, 1e-7, torch.finfo(dtype).max, torch.finfo(dtype).tiny])
    for given in (weight, weight.t().contiguous().t(), torch.cat([weight, weight], dim=1)[:, :9]):
        found = NativeMatrix.of_plain(given).rows_at(torch.tensor([32, 0, 31]), torch.float32)
        assert same(found, weight[[32, 0, 31]].float())


EVERY_SHORT = torch.arange(-(2**15), 2**15).to(torch.int16)
"""All that 16 bits hold: numbers, subnormal ones, the endless ones, what is none."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_number_of_16_bits_is_read_as_torch_reads_it(functions: ctypes.CDLL, dtype: torch.dtype) -> None:
    expected = EVERY_SHORT.view(dtype).float()
    matrix = NativeMatrix.of_plain(EVERY_SHORT.view(dtype)[:, None])
    for count in (1, 13):
        found = matrix(torch.ones(count, 1))
        torch.testing.assert_close(found, expected.expand(count, -1), rtol=0, atol=0, equal_nan=True)
    found = matrix.rows_at(torch.arange(2**16), torch.float32)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_every_number_of_16_bits_may_be_a_scale(functions: ctypes.CDLL) -> None:
    raw = torch.ones(2**16, 34, dtype=torch.uint8)
    raw[:, :2] = EVERY_SHORT.view(torch.uint8).view(-1, 2)
    matrix = NativeMatrix.of(raw, "Q8_0", 2**16, 32)
    expected = EVERY_SHORT.view(torch.float16).float()
    for count in (1, 13):
        found = matrix(torch.full((count, 32), 0.5))
        # 32 products of 0.5 and 1, each input rounded by at most one code of 32767, and a rounding of float32
        off = 1 / 65534 + torch.finfo(torch.float32).eps
        torch.testing.assert_close(found, 16 * expected.expand(count, -1), rtol=off, atol=0, equal_nan=True)
    found = matrix.rows_at(torch.arange(2**16), torch.float32)[:, 9]
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# --- products, exactly ------------------------------------------------------------------------------------------------


def made(kind: str) -> NativeMatrix:
    """A matrix of a GGUF type or of plain numbers, large enough to be shared out."""
    if kind in TYPES:
        return quantized(kind, 1000, 256)[0]
    return NativeMatrix.of_plain(normal(1000, 257).to(getattr(torch, kind)))


every_matrix = pytest.mark.parametrize("kind", [*TYPES, "float32", "bfloat16", "float16"])


@every_matrix
def test_a_row_is_the_same_whatever_is_beside_it(functions: ctypes.CDLL, kind: str) -> None:
    matrix = made(kind)
    x = normal(40, matrix.columns)
    alone = torch.cat([matrix(row[None]) for row in x])
    for count in (2, 3, 4, 5, FEW):
        for first in (0, 7):
            assert same(matrix(x[first : first + count]), alone[first : first + count])
    many = matrix(x)
    for first, last in ((0, 12), (1, 14), (15, 40)):
        assert same(matrix(x[first:last]), many[first:last])
    assert same(matrix(x.flip(0)).flip(0), many)
    if kind in TYPES:  # a prompt's rows are those of single tokens
        assert same(many, alone)


@every_matrix
def test_products_are_the_same_on_any_threads(
    functions: ctypes.CDLL, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (1, 3, 13):
        alone, *shared = on_threads(monkeypatch, lambda count=count: made(kind)(normal(count, made(kind).columns)))
        assert all(same(result, alone) for result in shared)


@every_matrix
def test_what_is_not_a_number_stays_in_its_row(functions: ctypes.CDLL, kind: str) -> None:
    matrix = made(kind)
    for count in (1, 5, 13):
        x = normal(count, matrix.columns)
        clean, broken = matrix(x), count // 2
        x[broken, 17] = NAN
        found = matrix(x)
        assert found[broken].isnan().all()
        others = [row for row in range(count) if row != broken]
        assert same(found[others], clean[others])


# --- adapters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapted:
    """A projection's adapters.

    Attributes:
        outputs: of the projection.
        linears: of each linear that has any: its first output, how many, its first rank, how many.
    """

    inputs: int
    outputs: int
    linears: tuple[tuple[int, int, int, int], ...]

    @property
    def ranks(self) -> int:
        return sum(ranks for *_, ranks in self.linears)

    def matrices(self) -> tuple[Tensor, list[AdapterPart]]:
        parts = [
            AdapterPart(column, rank, normal(columns, ranks, seed=column), aligned=1)
            for column, columns, rank, ranks in self.linears
        ]
        return normal(self.ranks, self.inputs), parts

    def expected(self, x: Tensor, factors: Tensor, y: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        a, parts = self.matrices()
        inner = x.to(dtype) @ a.to(dtype).t() * factors.to(dtype)
        expected = y.to(dtype, copy=True)
        for part in parts:
            columns, ranks = part.b.shape
            change = inner[:, part.rank : part.rank + ranks] @ part.b.to(dtype).t()
            expected[:, part.column : part.column + columns] += change
        return expected


ADAPTED = {
    "one of one": Adapted(40, 32, ((0, 32, 0, 8),)),
    "odd sizes": Adapted(77, 61, ((0, 61, 0, 1),)),
    "with gaps": Adapted(129, 250, ((3, 40, 0, 5), (70, 33, 5, 32), (130, 100, 37, 11))),
    "in another order": Adapted(64, 200, ((150, 50, 0, 3), (0, 150, 3, 37))),
    "large": Adapted(320, 1100, ((0, 500, 0, 24), (501, 599, 24, 41))),
}
every_adapted = pytest.mark.parametrize("adapted", ADAPTED.values(), ids=ADAPTED)


def add(step: NativeStep, adapted: Adapted, x: Tensor, factors: Tensor, y: Tensor) -> None:
    packed = step.pack(*adapted.matrices())
    step.add_adapters(packed, step.begin_adapters(packed, x, factors), y)


@every_adapted
@pytest.mark.parametrize("shared", [False, True], ids=["factors of each row", "of all"])
def test_adapters_equal_float64(step: NativeStep, adapted: Adapted, shared: bool) -> None:
    packed = step.pack(*adapted.matrices())
    for count in COUNTS:
        x = strided(count, adapted.inputs, seed=1)
        factors = strided(1 if shared else count, adapted.ranks, seed=2)
        y = strided(count, adapted.outputs, seed=3)
        expected, own = (adapted.expected(x, factors, y, dtype) for dtype in (torch.float64, torch.float32))
        step.add_adapters(packed, step.begin_adapters(packed, x, factors), y)
        assert_near(y, expected, own)


def test_adapters_leave_the_outputs_of_other_linears(step: NativeStep) -> None:
    adapted = ADAPTED["with gaps"]
    for count in COUNTS:
        around = normal(count, adapted.outputs + 9)
        before = around.clone()
        y = around[:, 4 : 4 + adapted.outputs]
        add(step, adapted, normal(count, adapted.inputs), normal(count, adapted.ranks), y)
        changed = around != before
        assert not changed[:, :4].any()
        assert not changed[:, 4 + adapted.outputs :].any()
        touched = {column for first, columns, *_ in adapted.linears for column in range(first, first + columns)}
        assert set(changed.any(0).nonzero().flatten().tolist()) == {4 + column for column in touched}


def test_no_rows_have_no_adapters_added(step: NativeStep) -> None:
    adapted, y = ADAPTED["with gaps"], torch.empty(0, 250)
    add(step, adapted, torch.empty(0, adapted.inputs), normal(1, adapted.ranks), y)
    assert y.shape == (0, 250)


def test_adapters_give_a_row_the_same_whatever_is_beside_it(step: NativeStep) -> None:
    adapted = ADAPTED["large"]
    packed = step.pack(*adapted.matrices())
    x, factors, y = normal(40, adapted.inputs), normal(40, adapted.ranks), normal(40, adapted.outputs)

    def added(rows: slice) -> Tensor:
        result = y[rows].clone()
        step.add_adapters(packed, step.begin_adapters(packed, x[rows], factors[rows]), result)
        return result

    alone = torch.cat([added(slice(row, row + 1)) for row in range(40)])
    for count in (2, 3, 4, 5, FEW):
        assert same(added(slice(6, 6 + count)), alone[6 : 6 + count])
    assert same(added(slice(15, 40)), added(slice(0, 40))[15:])


def test_adapters_are_the_same_on_any_threads(step: NativeStep, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = ADAPTED["large"]
    for count in (5, 40):

        def added(count: int = count) -> Tensor:
            y = normal(count, adapted.outputs)
            add(step, adapted, normal(count, adapted.inputs), normal(count, adapted.ranks), y)
            return y

        alone, *shared = on_threads(monkeypatch, added)
        assert all(same(result, alone) for result in shared)


def test_adapters_keep_what_is_not_a_number_in_its_row(step: NativeStep) -> None:
    adapted = ADAPTED["large"]
    for count in (5, 13):
        x, factors, y = normal(count, adapted.inputs), normal(1, adapted.ranks), normal(count, adapted.outputs)
        clean = y.clone()
        add(step, adapted, x, factors, clean)
        x[2, 3] = NAN
        add(step, adapted, x, factors, y)
        assert y[2, :500].isnan().all()
        assert y[2, 501:].isnan().all()
        clean[2] = y[2]
        assert same(y, clean)


# --- norms ------------------------------------------------------------------------------------------------------------

SIZES = (1, 7, 16, 24, 100, 576, 1700)


def normalised(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return hidden / (hidden.square().mean(1, keepdim=True) + eps).sqrt() * weight


@pytest.mark.parametrize("size", SIZES)
def test_norms_add_in_place_and_equal_float64(step: NativeStep, size: int) -> None:
    weight = normal(size, seed=1)
    for count in (0, 1, 3, 40):
        for factor in (1.0, 1e-4, 1e10):
            hidden, change = normal(count, size) * factor, normal(count, size, seed=2) * factor
            before = hidden + change
            out = step.add_rms_norm(hidden, change, weight, 1e-6)
            assert same(hidden, before)
            exact = normalised(hidden.double(), weight.double(), 1e-6)
            assert_near(out, exact, normalised(hidden, weight, 1e-6))


def test_a_norm_of_nothing_is_nothing(step: NativeStep) -> None:
    assert not step.add_rms_norm(torch.zeros(2, 24), torch.zeros(2, 24), torch.ones(24), 1e-6).any()


def test_norms_are_the_same_on_any_threads_and_beside_any_rows(
    step: NativeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, change, weight = normal(40, 1700), normal(40, 1700, seed=1), normal(1700, seed=2)

    def norm(rows: slice = slice(None)) -> Tensor:
        return step.add_rms_norm(hidden[rows].clone(), change[rows], weight, 1e-5)

    alone = torch.cat([norm(slice(row, row + 1)) for row in range(40)])
    assert all(same(result, alone) for result in on_threads(monkeypatch, norm))


def test_norms_keep_what_is_not_a_number_in_its_row(step: NativeStep) -> None:
    for size in (24, 1700):
        hidden = normal(40, size)
        clean = step.add_rms_norm(hidden.clone(), torch.zeros(40, size), torch.ones(size), 1e-6)
        hidden[11, size - 1] = NAN
        found = step.add_rms_norm(hidden, torch.zeros(40, size), torch.ones(size), 1e-6)
        assert found[11].isnan().all()
        clean[11] = found[11]
        assert same(found, clean)


# --- the MLP's gate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_gates_equal_float64(step: NativeStep, size: int) -> None:
    for count in (0, 1, 3, 40):
        both = strided(count, 2 * size)
        for factor in (1, 10, 1e-3):
            gate, up = (both * factor).double().chunk(2, dim=1)
            given = torch.empty(count, 2 * size + 3)[:, : 2 * size].copy_(both * factor)
            assert_near(step.silu_product(given), F.silu(gate) * up, F.silu(gate.float()) * up.float())


# what a gate's exponential does at the ends of float32
ENDS = [0.0, 1e-42, 1e-30, 1e-7, 0.5, 20.0, 80.0, 86.9, 87.1, 87.9, 88.1, 88.8, 89.0, 103.0, 104.1, 1e4, 1e30, 3e38]


def test_gates_of_any_number_are_near_in_themselves(step: NativeStep) -> None:
    gate = torch.tensor([*ENDS, *(-end for end in ENDS)])
    # each number in the lanes of a vector, and behind the last whole one
    both = torch.cat([gate[:, None].expand(-1, 67), torch.ones(len(gate), 67)], dim=1).contiguous()
    found, expected = step.silu_product(both), F.silu(gate.double())[:, None].expand(-1, 67)
    # the exponential is within two units in the last place, and so are the sum, the quotient and the product together;
    # a gate below -87 may be as good as none: silu of -87 is 1.4e-36
    torch.testing.assert_close(found.double(), expected, rtol=8 * torch.finfo(torch.float32).eps, atol=2e-36)
    # and what is written is what torch has at both ends
    endless = torch.tensor([float("inf"), -float("inf"), NAN])
    both = torch.cat([endless[:, None].expand(-1, 67), torch.ones(3, 67)], dim=1).contiguous()
    expected = F.silu(endless.double())[:, None].expand(-1, 67)
    torch.testing.assert_close(step.silu_product(both).double(), expected, equal_nan=True)


def test_gates_are_the_same_on_any_threads_and_beside_any_rows(
    step: NativeStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = normal(40, 3402)
    alone = torch.cat([step.silu_product(row[None]) for row in both])
    assert all(same(result, alone) for result in on_threads(monkeypatch, lambda: step.silu_product(both)))


def test_gates_keep_what_is_not_a_number_in_its_place(step: NativeStep) -> None:
    both = normal(3, 48)
    clean = step.silu_product(both)
    both[1, 5], both[2, 24 + 23] = NAN, NAN
    found = step.silu_product(both)
    assert found.isnan().nonzero().tolist() == [[1, 5], [2, 23]]
    assert same(found.nan_to_num(0), clean.masked_fill(found.isnan(), 0))


# --- attention --------------------------------------------------------------------------------------------------------

CAPACITY = 800
# (length, past) of sequences, in an order that no slot has
RAGGED = ((1, 0), (17, 30), (1, 100), (2, 0), (16, 16), (1, 7), (40, 0), (15, 1), (1, 129), (40, 90), (3, 64),
          (1, 799), (1, 255), (2, 255), (1, 256), (3, 510), (4, 700), (20, 500))  # fmt: skip
SLOTS = (7, 0, 12, 3, 5, 1, 9, 2, 10, 4, 8, 6, 17, 13, 11, 16, 14, 15)


@dataclass(frozen=True)
class Heads:
    """The form of an attention."""

    heads: int
    kv_heads: int
    dim: int
    rotary: int
    window: int | None = None
    limit: float | None = None

    @property
    def scale(self) -> float:
        return 1.3 * self.dim**-0.5  # not the one that torch would take by itself


FORMS = {
    "8": Heads(2, 1, 8, 8),
    "16": Heads(4, 4, 16, 16),
    "24, part turned": Heads(6, 2, 24, 10),
    "64": Heads(9, 3, 64, 64),
    "80, part turned": Heads(4, 4, 80, 32),
    "128": Heads(4, 1, 128, 128),
    "not turned": Heads(2, 2, 20, 0),
    "of five": Heads(10, 2, 64, 64),
    "of six": Heads(6, 1, 40, 40),
    "of seven": Heads(14, 2, 64, 16),
    "of eight": Heads(8, 1, 96, 96),
    "of sixteen": Heads(16, 1, 64, 64),
    "window": Heads(4, 2, 64, 64, window=20),
    "large window": Heads(6, 2, 64, 64, window=300),
    "window of one": Heads(2, 1, 24, 24, window=1),
    "wide window": Heads(2, 1, 16, 8, window=5000),
    "capped": Heads(4, 2, 64, 64, limit=1.5),
    "capped in a window": Heads(4, 4, 24, 12, window=33, limit=30.0),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


class Attended:
    """Sequences that go on, each in its slot, whose past is in the cache; everything else there is NaN."""

    def __init__(self, form: Heads, sequences: Sequence[tuple[int, int]], slots: Sequence[int]) -> None:
        self.form = form
        self.segments, rows = [], 0
        for (length, past), slot in zip(sequences, slots, strict=True):
            self.segments.append(Segment(slot, rows, length, past))
            rows += length
        angles = torch.arange(CAPACITY)[:, None] * (1000.0 ** -torch.linspace(0, 1, form.rotary // 2)).double()
        self.turns = torch.polar(torch.full_like(angles, 1.2), angles)  # some ropes stretch too
        self.fused = normal(rows, (form.heads + 2 * form.kv_heads) * form.dim + 3)
        shape = (len(SLOTS), form.kv_heads, CAPACITY, form.dim)
        self.keys, self.values = torch.full(shape, NAN), torch.full(shape, NAN)
        for segment in self.segments:
            past = (form.kv_heads, segment.past, form.dim)
            self.keys[segment.slot, :, : segment.past] = normal(*past, seed=2 * segment.slot)
            self.values[segment.slot, :, : segment.past] = normal(*past, seed=2 * segment.slot + 1)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: parts of what one product gives."""
        form, found, first = self.form, [], 0
        for heads in (form.heads, form.kv_heads, form.kv_heads):
            found.append(self.fused[:, first : first + heads * form.dim].unflatten(1, (heads, form.dim)))
            first += heads * form.dim
        return found[0], found[1], found[2]

    def run(self, step: NativeStep, numbers: Sequence[int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the kernel gives for some of the sequences, and the cache that it leaves."""
        segments = self.segments if numbers is None else [self.segments[number] for number in numbers]
        rows = [row for part in segments for row in range(part.start, part.start + part.length)]
        chosen, first = [], 0
        for part in segments:
            chosen.append(Segment(part.slot, first, part.length, part.past))
            first += part.length
        q, k, v = self.parts if numbers is None else (part[rows] for part in self.parts)
        positions = torch.tensor([part.past + row for part in segments for row in range(part.length)])
        cos, sin = self.turns.real.float(), self.turns.imag.float()
        tables = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)
        keys, values = self.keys.clone(), self.values.clone()
        batch = Batch(torch.zeros(len(positions), dtype=torch.int64), positions, tuple(chosen))
        form = self.form
        out = step.attend(q, k, v, tables, keys, values, batch, form.scale, form.window, form.limit)
        return out, keys, values

    def turned(self, x: Tensor, segment: Segment) -> Tensor:
        """[rows, heads, dim] of x's type, each pair turned as one complex number."""
        half, rest = self.form.rotary // 2, x[..., self.form.rotary :]
        pairs = torch.complex(x[..., :half].contiguous(), x[..., half : 2 * half].contiguous())
        pairs = pairs * self.turns[segment.past : segment.past + segment.length, None].to(pairs.dtype)
        return torch.cat([pairs.real, pairs.imag, rest], dim=-1)

    def expected(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """What torch gives, and the cache."""
        q, k, v = (part.to(dtype) for part in self.parts)
        form, out = self.form, []
        keys, values = self.keys.to(dtype, copy=True), self.values.to(dtype, copy=True)
        for part in self.segments:
            rows, end = slice(part.start, part.start + part.length), part.past + part.length
            keys[part.slot, :, part.past : end] = self.turned(k[rows], part).transpose(0, 1)
            values[part.slot, :, part.past : end] = v[rows].transpose(0, 1)
            apart = torch.arange(part.past, end)[:, None] - torch.arange(end)
            visible = (apart >= 0) & (apart < (form.window or CAPACITY))
            seen = (
                cached[part.slot, :, :end].repeat_interleave(form.heads // form.kv_heads, dim=0)
                for cached in (keys, values)
            )
            attended = self.attended(self.turned(q[rows], part).transpose(0, 1), *seen, visible)
            out.append(attended.transpose(0, 1).flatten(1))
        return torch.cat(out), keys, values

    def attended(self, q: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """All [heads, rows or keys, dim]."""
        if self.form.limit is None:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=visible, scale=self.form.scale)
        scores = torch.tanh(q @ keys.mT * self.form.scale / self.form.limit) * self.form.limit
        return torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1) @ values


@every_form
def test_attention_equals_float64(step: NativeStep, form: Heads) -> None:
    attended = Attended(form, RAGGED, SLOTS)
    out, keys, values = attended.run(step)
    expected, expected_keys, expected_values = attended.expected()
    own, own_keys, _ = attended.expected(torch.float32)
    assert_near(out, expected, own)
    written = ~expected_keys.isnan()
    assert_near(keys[written], expected_keys[written], own_keys[written])
    assert torch.equal(values[written].double(), expected_values[written])


@every_form
def test_attention_writes_to_the_new_places_of_the_cache_only(step: NativeStep, form: Heads) -> None:
    attended = Attended(form, RAGGED, SLOTS)
    _, *caches = attended.run(step)
    new = torch.zeros(len(SLOTS), CAPACITY, dtype=torch.bool)
    for part in attended.segments:
        new[part.slot, part.past : part.past + part.length] = True
    for before, after in zip((attended.keys, attended.values), caches, strict=True):
        untouched = ~new[:, None, :, None].expand_as(before)
        assert same(after[untouched], before[untouched])
        assert not after[~untouched].isnan().any()


@every_form
def test_attention_of_a_sequence_is_the_same_whatever_is_beside_it(step: NativeStep, form: Heads) -> None:
    attended = Attended(form, RAGGED, SLOTS)
    together, _, _ = attended.run(step)
    apart = torch.cat([attended.run(step, [number])[0] for number in range(len(RAGGED))])
    assert same(together, apart)
    upside_down = attended.run(step, range(len(RAGGED))[::-1])[0].split([length for length, _ in RAGGED[::-1]])
    assert same(together, torch.cat(upside_down[::-1]))


@every_form
def test_attention_is_the_same_on_any_threads(step: NativeStep, form: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    attended = Attended(form, RAGGED, SLOTS)
    alone, *shared = on_threads(monkeypatch, lambda: torch.cat([part.flatten() for part in attended.run(step)]))
    assert all(same(result, alone) for result in shared)


@pytest.mark.parametrize("form", [FORMS["64"], FORMS["window"], FORMS["capped"]], ids=["all", "window", "capped"])
def test_attention_keeps_what_is_not_a_number_in_its_row(step: NativeStep, form: Heads) -> None:
    attended = Attended(form, RAGGED, SLOTS)
    clean, _, _ = attended.run(step)
    broken = [attended.segments[0].start, attended.segments[1].start + 3, attended.segments[6].start + 39]
    attended.parts[0][broken] = NAN
    found, _, _ = attended.run(step)
    assert found[broken].isnan().all()
    clean[broken] = found[broken]
    assert same(found, clean)


@pytest.mark.parametrize("which", [1, 2], ids=["key", "value"])
def test_what_is_not_a_number_is_seen_by_later_rows_of_its_sequence_alone(step: NativeStep, which: int) -> None:
    attended = Attended(FORMS["window"], RAGGED, SLOTS)
    clean, _, _ = attended.run(step)
    last, middle = attended.segments[2].start, attended.segments[6].start
    attended.parts[which][last] = NAN  # a sequence of one row
    attended.parts[which][middle + 16] = NAN  # the first of a block of rows
    found, _, _ = attended.run(step)
    seen = [last, *range(middle + 16, middle + 36)]  # a window of 20
    assert found[seen].isnan().all()
    clean[seen] = found[seen]
    same_block = slice(middle + 36, middle + 40)
    clean[same_block] = found[same_block]
    assert same(found, clean)


def test_attention_of_no_rows_is_nothing(step: NativeStep) -> None:
    attended = Attended(FORMS["16"], (), ())
    out, keys, _ = attended.run(step)
    assert out.shape == (0, 64)
    assert keys.isnan().all()


def test_large_scores_take_the_likeliest_key_alone(step: NativeStep) -> None:
    attended = Attended(Heads(2, 1, 24, 0), ((1, 99), (40, 0)), (3, 5))
    attended.fused *= 3000
    out, _, _ = attended.run(step)
    assert_near(out, attended.expected()[0], attended.expected(torch.float32)[0])


# --- more than one caller ---------------------------------------------------------------------------------------------


def test_several_threads_may_call_at_once(step: NativeStep) -> None:
    matrices = [made(kind) for kind in ("Q4_1", "Q6_K", "float32")]
    attended, adapted = Attended(FORMS["24, part turned"], RAGGED, SLOTS), ADAPTED["large"]
    packed = step.pack(*adapted.matrices())

    def added() -> Tensor:
        y = normal(13, adapted.outputs)
        step.add_adapters(packed, step.begin_adapters(packed, normal(13, adapted.inputs), normal(1, adapted.ranks)), y)
        return y

    def product(matrix: NativeMatrix, count: int) -> Callable[[], Tensor]:
        x = normal(count, matrix.columns)
        return lambda: matrix(x)

    work = [product(matrices[0], 3), product(matrices[1], 13), product(matrices[2], 4), added]
    work += [lambda: attended.run(step)[0]]
    expected = [each() for each in work]
    together = Barrier(len(work))

    def repeatedly(number: int) -> bool:
        together.wait()
        return all(same(work[number](), expected[number]) for _ in range(30))

    with ThreadPoolExecutor(len(work)) as pool:
        assert all(pool.map(repeatedly, range(len(work))))


def test_work_is_taken_up_again_after_a_rest(functions: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that found nothing to do for a while sleep, and others join them."""
    matrix = made("Q8_0")
    x = normal(5, matrix.columns)
    monkeypatch.setattr(library, "threads", 1)
    expected = matrix(x)
    for threads in (2, 5, 3, 1, 4):
        monkeypatch.setattr(library, "threads", threads)
        pause(0.02)
        assert all(same(matrix(x), expected) for _ in range(20))
