"""The time that each form of ssl_jax/cpu.py saves: the training step with and without it, alternating, in one process.

    python experiments/throughput/cpu_forms.py [--forms=...] [--configs=...] [--rounds=9] [--seconds=0.7] [--json=FILE]

A ratio is the time without the form over the time with it: above 1 the form pays. Each is the median of paired blocks, with the
quartiles. By default the CPU time of all threads of the process is measured, which other work on the machine disturbs little;
use --clock=wall for forms that change how cores wait for each other ("one vector").
"""

import argparse
import contextlib
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import bench, config, cpu, devices, runs, start
from ssl_jax.models import attention, mae, patches, vit
from ssl_jax.training import step

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = {
    "mae": ("configs/mae/fashion_mnist.py", {}),
    "gpt": ("configs/gpt/shakespeare_char_cpu.py", {}),
    "bert": ("configs/bert/shakespeare_cpu.py", {}),
}
BF16 = {f"{name} bf16": (path, {"training.dtype": "bfloat16"}) for name, (path, _) in CONFIGS.items()}


def plain_pick(x, indices, inverse):
    return jnp.where(indices[..., None] < 0, 0, patches.take(x, jnp.maximum(indices, 0)))


def plain_affine(x, kernel, bias=None):
    y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
    return y if bias is None else y + bias.astype(y.dtype)


@jax.custom_vjp
def narrow_dense(x, kernel):
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _narrow_backward(residual, g):
    """Like cpu._dense_backward, but always with the plain product for the kernel's gradient."""
    x, kernel = residual
    g = jax.lax.optimization_barrier(g)
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return (columns @ kernel.T).reshape(x.shape), rows.T @ columns


narrow_dense.defvjp(lambda x, kernel: (narrow_dense(x, kernel), (x, kernel)), _narrow_backward)

# Form -> its replacement: (module, attribute, value).
FORMS: dict[str, list[tuple[object, str, Callable]]] = {
    "none": [],
    "dense gradient": [(cpu, "affine", plain_affine)],
    "wide input": [(cpu, "_dense", narrow_dense)],
    "materialize_cotangent": [(cpu, "materialize_cotangent", lambda x: x)],
    "attention gradient": [(attention, "_attended", attention._attended.__wrapped__)],
    "pick": [(module, "pick", plain_pick) for module in (patches, vit, mae)],
    "applied": [(step, "applied", step.applied.__wrapped__)],
    "one vector": [(step, "ravel_pytree", lambda tree: (tree, lambda x: x))],
    "bf16 products": [(cpu, "is_cpu_bf16", lambda *factors: False)],
}
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


@contextlib.contextmanager
def without(form: str) -> Iterator[None]:
    """A context in which a form has its plain definition."""
    with contextlib.ExitStack() as stack:
        for module, name, value in FORMS[form]:
            stack.callback(functools.partial(setattr, module, name, getattr(module, name)))
            setattr(module, name, value)
        yield


def ours(name: str, steps_per_call: str) -> bench.Ours:
    path, overrides = (CONFIGS | BF16)[name]
    return bench.Ours(runs.prepare(config.load(str(ROOT / path), overrides | {"training.steps_per_call": steps_per_call})))


def compare(having: bench.Ours, lacking: bench.Ours, rounds: int, seconds: float, clock: Callable[[], float]) -> dict:
    """Return the step's times with and without a form, in alternating blocks of about `seconds`."""
    before = clock()
    having.run(2 * having.count)
    steps = max(having.count, round(seconds * 2 * having.count / (clock() - before)))
    sides = {"with": having, "without": lacking}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for round_ in range(rounds):
        for side in sorted(sides, reverse=bool(round_ % 2)):
            sides[side].run(sides[side].count)
            before = clock()
            sides[side].run(steps)
            times[side].append(clock() - before)
            sides[side].close()
    ratios = np.array(times["without"]) / np.array(times["with"])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return dict(ratio=middle, quartiles=(low, high), step_ms=1e3 * float(np.median(times["with"])) / steps)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--steps_per_call", default="1")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    print(start.start_process(), devices.processor(), f"jax {jax.__version__}", file=sys.stderr)
    results = []
    for name in arguments.configs.split(","):
        having = ours(name, arguments.steps_per_call)
        for form in arguments.forms.split(","):
            with without(form):
                lacking = ours(name, arguments.steps_per_call)
            found = compare(having, lacking, arguments.rounds, arguments.seconds, CLOCKS[arguments.clock])
            results.append(dict(config=name, form=form) | found)
            low, high = found["quartiles"]
            print(f"{name:10} {form:24} {found['ratio']:.3f} ({low:.3f} to {high:.3f}), {found['step_ms']:.2f} ms", flush=True)
    if arguments.json:
        about = dict(processor=devices.processor(), cores=devices.cores(), jax=jax.__version__, clock=arguments.clock)
        pathlib.Path(arguments.json).write_text(json.dumps(dict(about=about, results=results), indent=1) + "\n")


if __name__ == "__main__":
    main()
