"""What saving every 50 steps costs: the share of the throughput that is left.

python -m tests.reliability.saving [--config=configs/mae/fashion_mnist.py] [--steps=250] [--rounds=3]

Runs with and without saving take turns; a run without still saves its last step. Exit status 1 below 95 %.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import time

from ssl_jax import config as configs
from ssl_jax import runs
from ssl_jax.start import enable_cache
from ssl_jax.training.settings import CheckpointSettings

EVERY, FLOOR = 50, 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/mae/fashion_mnist.py")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    enable_cache()
    trainer = runs.trainer_of(runs.prepare(configs.load(arguments.config)))

    def seconds(every: int | None, steps: int = arguments.steps) -> float:
        with tempfile.TemporaryDirectory() as folder:
            settings = CheckpointSettings(every=every, every_minutes=None)
            started = time.perf_counter()
            trainer.run(seed=0, total_steps=steps, workdir=pathlib.Path(folder), checkpoint=settings, quiet=True)
            return time.perf_counter() - started

    seconds(10, 20)  # compiles
    saves = arguments.steps // EVERY - 1  # more than in a run without
    shares = []
    for number in range(arguments.rounds):
        pair = [seconds(every) for every in ((None, EVERY) if number % 2 else (EVERY, None))]
        without, saving = pair if number % 2 else reversed(pair)
        interval = without / arguments.steps * EVERY
        shares.append(interval / (interval + (saving - without) / saves))
        print(f"{without:.2f} s without, {saving:.2f} s with {saves} saves more: {shares[-1]:.1%}", flush=True)
    print(f"median {statistics.median(shares):.1%} of the throughput, saving every {EVERY} steps")
    return 0 if statistics.median(shares) >= FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
