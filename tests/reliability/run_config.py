"""`ssl-jax` with a line "PHASE name" at the beginning of each compilation, step, evaluation and save."""

import sys

from ssl_jax import cli
from ssl_jax.training import checkpoint, loop
from ssl_jax.training.program import Program


def announced(name, function):
    def call(*arguments, **options):
        print(f"PHASE {name}", flush=True)
        return function(*arguments, **options)

    return call


def compiled(self, count, resident, original=Program.compiled):
    if not self._compiled:
        print("PHASE compile", flush=True)
    return announced("step", original(self, count, resident))


Program.compiled = compiled
checkpoint.manifest = announced("save", checkpoint.manifest)
run = loop.Trainer.run


def run_announced(self, *, evaluate=None, **options):
    return run(self, evaluate=evaluate and announced("evaluate", evaluate), **options)


loop.Trainer.run = run_announced

if __name__ == "__main__":
    sys.exit(cli.main())
