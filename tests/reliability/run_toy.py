"""One small run as a process of its own: `python -m tests.reliability.run_toy WORKDIR [key=value ...]`.

Prints a line "PHASE name" when a phase begins, so that a test can send a signal in the middle of it.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.start import enable_cache, join_processes
from ssl_jax.streams import quiet_libraries
from ssl_jax.training import checkpoint as checkpoints
from ssl_jax.training import loop
from ssl_jax.training.exceptions import Stopped
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.program import Program
from ssl_jax.training.settings import CheckpointSettings, MeshSettings, TrainingSettings
from tests.reliability.toys import ToyTask, toy_stream


def phase(name: str) -> None:
    print(f"PHASE {name}", flush=True)


def main(workdir: str, **options: str) -> int:
    number = lambda name, default=0: type(default)(options.get(name, default))
    quiet_libraries()
    join_processes()
    enable_cache()
    training = TrainingSettings(
        duration=f"{number('steps', 30)} steps", log_every=4, ema=0.9, tensorboard=False,
        accumulation=number("accumulation", 1), evaluate_every=f"{number('evaluate_every', 8)} steps",
        steps_per_call=number("steps_per_call", 1),
    )  # fmt: skip
    settings = CheckpointSettings(every=number("every", 6), keep=number("keep", 3), grace=number("grace", 20.0))
    mesh = MeshSettings(data=number("data", -1), fsdp=number("fsdp", 1), tensor=number("tensor", 1))
    slow_step, slow_evaluation, slow_save = number("slow_step", 0.0), number("slow_evaluation", 0.0), number("slow_save", 0.0)

    compiled, compiles, create, wait = Program.compiled, Program.compile, Program.create, checkpoints.manifest

    def announce_compile(self, *arguments):
        phase("compile")
        return compiles(self, *arguments)

    def announce_compiled(self, count, resident):
        program = compiled(self, count, resident)

        def slowed(*arguments):
            phase("step")
            time.sleep(slow_step)
            if "die_at" in options and int(arguments[0].step) == int(options["die_at"]):
                os._exit(9)
            return program(*arguments)

        return slowed

    def announce_create(self, *arguments):
        phase("create")
        time.sleep(number("slow_create", 0.0))
        return create(self, *arguments)

    def announce_save(folder):
        phase("save")
        time.sleep(slow_save)
        if "fail_save" in options and folder.name.endswith(options["fail_save"]):
            raise OSError(28, "No space left on device")
        return wait(folder)

    Program.compiled, Program.compile = announce_compiled, announce_compile
    Program.create, checkpoints.manifest = announce_create, announce_save

    def evaluate(state):
        phase("evaluate")
        time.sleep(slow_evaluation)
        return {"sum": float(sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(state.ema)))}

    task = ToyTask(unroll=number("unroll", 0), width=number("width", 16))
    stream = toy_stream(number("batch", 16), placement=options.get("placement", "host"))
    optimizer = OptimizerSettings(lr=1e-2, weight_decay=0.05, warmup="10 %", clip=1.0)
    try:
        state = loop.train(
            task, stream, training=training, optimizer=optimizer, seed=0, mesh=mesh, workdir=workdir, checkpoint=settings,
            evaluate=evaluate, quiet=True,
        )  # fmt: skip
    except Stopped as stopped:
        print(f"ssl-jax: {stopped}", file=sys.stderr)
        return stopped.status
    except UserError as error:
        print(f"ssl-jax: {error}", file=sys.stderr)
        return 2
    print(f"DONE {int(state.step)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], **dict(word.split("=", 1) for word in sys.argv[2:])))
