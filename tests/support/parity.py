"""The differences that the parity tests measure, and the table that is made of them.

    python -m pytest tests/engine/test_architectures.py tests/engine/test_gguf_models.py --write-parity

writes docs/parity.md; `tests/engine/test_parity_table.py` sees to it that the table and the tests name the same models.
"""

from __future__ import annotations

import platform
from pathlib import Path

import torch

FILE = Path(__file__).parents[2] / "docs" / "parity.md"
COLUMNS = ("prefill", "cached decode", "ragged batch", "LoRA", "X-LoRA", "GGUF")
ORACLES = ("transformers", "transformers", "transformers", "PEFT", "PEFT", "transformers")
ROWS: dict[str, dict[str, float]] = {}
"""Model -> column -> largest difference of a logit; in the order in which they were measured."""


def assert_near(row: str, column: str, actual: torch.Tensor, expected: torch.Tensor, *, tolerance: float) -> None:
    """Compare logits, and note the largest difference."""
    difference = (actual - expected).abs().max().item()
    noted = ROWS.setdefault(row, {})
    noted[column] = max(difference, noted.get(column, 0.0))
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def write(tolerance: float) -> None:
    """Write docs/parity.md from what was measured."""
    import peft
    import transformers

    lines = [
        "# Parity",
        "",
        "Largest difference of any logit between the engine and what others wrote, on tiny random models in float32",
        f"(2 to 6 layers, logits up to about 10). The tests refuse {tolerance:g}. Prefill and cached decode (16 single",
        "steps) are of one sequence; the ragged batch has three sequences of 37, 5 and 20 tokens and the same steps.",
        "The LoRA and X-LoRA columns compare with PEFT, the GGUF column with transformers on the weights that the file",
        "stands for. X-LoRA: two adapters, layerwise scalings, depth 2, without a cache, since PEFT has none there.",
        "A dash: not compared.",
        "",
        f"Measured with torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__} on "
        f"{platform.machine()}; made by",
        "`python -m pytest tests/engine/test_architectures.py tests/engine/test_gguf_models.py --write-parity`.",
        "",
        "| model | " + " | ".join(COLUMNS) + " |",
        "| --- |" + " --- |" * len(COLUMNS),
        "| against | " + " | ".join(ORACLES) + " |",
    ]
    for row in sorted(ROWS):
        cells = [f"{ROWS[row][column]:.0e}" if column in ROWS[row] else "-" for column in COLUMNS]
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
