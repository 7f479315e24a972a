"""The errors that the parity tests measure, and the table that is made of them.

    python -m pytest tests/engine/test_architectures.py tests/engine/test_gguf_models.py --write-parity

writes docs/parity.md; `tests/engine/test_parity_table.py` sees to it that the table and the tests name the same models.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from loradesk_engine.model.native.library import form
from support.precision import FACTOR, Reference

FILE = Path(__file__).parents[2] / "docs" / "parity.md"
COLUMNS = ("prefill", "cached decode", "ragged batch", "LoRA", "X-LoRA", "GGUF")
ORACLES = ("transformers", "transformers", "transformers", "PEFT", "PEFT", "transformers")
ROWS: dict[str, dict[str, float]] = {}
"""Model -> column -> how many times as far from float64 as the oracle; in the order in which they were measured."""


def assert_near(row: str, column: str, actual: torch.Tensor, expected: Reference) -> None:
    """Compare logits, and note how many times as far off as the oracle they are."""
    noted = ROWS.setdefault(row, {})
    noted[column] = max(FACTOR * expected.error(actual) / expected.allowed, noted.get(column, 0.0))
    expected.assert_near(actual)


def write() -> None:
    """Write docs/parity.md from what was measured."""
    import peft
    import transformers

    lines = [
        "# Parity",
        "",
        "How far the engine's logits are from the exact ones, as a multiple of how far the oracle's are, on tiny",
        "random models in float32 (2 to 6 layers, logits up to about 10). The exact logits are the oracle's in",
        "float64 throughout, norms, rotations and softmax included. The oracle's own error is that of its float32",
        "on the same machine, at least one rounding of the largest logit. Both errors are the largest of all",
        f"logits. With 1 the engine is as near as the oracle. The tests refuse {FACTOR}: both add the same numbers",
        "in another order, so their errors are draws of one kind, and a mistake is thousands of times as large.",
        "",
        "Prefill and cached decode (16 single steps) are of one sequence; the ragged batch has three sequences of",
        "37, 5 and 20 tokens and the same steps. The LoRA and X-LoRA columns compare with PEFT, the GGUF column",
        "with transformers on the weights that the file stands for. X-LoRA: two adapters, layerwise scalings, depth",
        "2, without a cache, since PEFT has none there. A dash: not compared.",
        "",
        "The same bound (`tests/support/precision.py`) holds wherever the tests compare with transformers or PEFT,",
        "also on a GPU and in bfloat16, where the oracle's own error is that of its bfloat16. Products with the",
        "codes of GGUF files round their inputs to 16 bits on the CPU, a group of columns by its largest number.",
        "There the oracle's own error is that of a copy whose linears read inputs rounded in this way, and single",
        "products may be off by `|w| max|x| / 65534`, summed over the columns (`tests/engine/test_native.py`).",
        "",
        f"Measured with torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__} on "
        f"{platform.machine()}, kernels {form()}; made by",
        "`python -m pytest tests/engine/test_architectures.py tests/engine/test_gguf_models.py --write-parity`.",
        "",
        "| model | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
        "| against | " + " | ".join(ORACLES) + " |",
    ]
    for row in sorted(ROWS):
        cells = [f"{ROWS[row][column]:.1f}" if column in ROWS[row] else "-" for column in COLUMNS]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read() -> dict[str, dict[str, float]]:
    """The table as it stands in docs/parity.md."""
    rows = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("model", "against", "---"):
            numbers = zip(COLUMNS, cells[1:], strict=True)
            rows[cells[0]] = {column: float(cell) for column, cell in numbers if cell != "-"}
    return rows
