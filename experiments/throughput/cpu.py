"""Compare training steps on this machine's cores with `transformers` in PyTorch; nothing else should run.

    python experiments/throughput/cpu.py

Writes experiments/throughput/cpu.json and prints the table of README.md.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import measure  # noqa: E402
import shapes  # noqa: E402


def both() -> dict:
    return shapes.cpu() | {f"{name}, bf16": shape for name, shape in shapes.cpu("bfloat16").items()}


if __name__ == "__main__":
    measure.main(__file__, lambda tiny=False: both(), pathlib.Path(__file__).with_name("cpu.json"))
