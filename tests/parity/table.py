"""Prints docs/interop.md's table of measured differences:  python -m tests.parity.table

The largest difference of each output relative to its largest magnitude, and of any parameter's gradient relative to the
largest magnitude of that gradient, in f32, from random weights.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import importlib.metadata
import pathlib
import tempfile

from tests.parity import minilm
from tests.parity.cases import CASES
from tests.parity.reference import Pair


def main() -> None:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "torch", "transformers"))
    print(f"{versions}; f32 on a CPU.\n")
    print("| reference | shape | outputs | gradients |\n|---|---|---|---|")
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            outputs, gradient = Pair(case, pathlib.Path(folder)).compare()
        listed = ", ".join(f"{output} {value:.0e}" for output, value in together(outputs).items())
        print(f"| `{case.cls.__name__}` | {name} | {listed} | {gradient:.0e} |", flush=True)
    if (minilm.FOLDER / "model.safetensors").is_file():
        sentences, what = minilm.sentences()
        worst, moved = minilm.measure(sentences)
        print(f"| MiniLM's published weights | {what} | embeddings {worst:.0e}, other neighbours: {moved} | |")


def together(outputs: dict[str, float]) -> dict[str, float]:
    """The blocks' hidden states under one name, the worst of them."""
    blocks = [value for name, value in outputs.items() if name.startswith("block")]
    rest = {name: value for name, value in outputs.items() if not name.startswith("block")}
    return rest | ({"blocks": max(blocks)} if blocks else {})


if __name__ == "__main__":
    main()
