"""The notebook of the documents runs from its first cell to its last, and shows what it says."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "first_hour.ipynb"
CHECKS = """
assert results["linear_probe/accuracy"] > 0.6  # of ten classes
assert nearest[0] == 0  # a picture is the closest to itself
assert Image.open("reconstructions.png").size[0] > 32
assert "task.mask.ratio" in pathlib.Path("runs/both/comparison.md").read_text()
"""


def cells():
    """The code cells, in one string."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """In a fresh process, on one core: a minute where nothing else runs."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-c", cells() + CHECKS], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "linear_probe/accuracy" in done.stdout and "2,000" in done.stdout


def test_a_notebook_is_stored_without_outputs():
    """Otherwise every execution is a change."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in found if cell.get("outputs") or cell.get("execution_count")]
