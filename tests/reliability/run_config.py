"""`ssl-jax` with a line "PHASE name" at the beginning of each compilation, step, evaluation and save, and of the evidence."""

import sys
import time

from ssl_jax import cli, runs
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.program import Program


def announced(name, function, seconds=0.0):
    def call(*arguments, **options):
        print(f"PHASE {name}", flush=True)
        time.sleep(seconds)
        return function(*arguments, **options)

    return call


def compiled(self, count, resident, original=Program.compiled):
    return announced("step", original(self, count, resident), 0.02)  # steps are too short to be hit otherwise


Program.compiled = compiled
Program.compile = announced("compile", Program.compile)
Checkpoints.save = announced("save", Checkpoints.save)
runs.evaluate_during = announced("evaluate", runs.evaluate_during)
runs.evaluate_all = announced("evidence", runs.evaluate_all)

if __name__ == "__main__":
    sys.exit(cli.main())
