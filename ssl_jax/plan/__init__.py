"""Plan a run for devices that need not be present: memory, collectives, memory traffic and time of its training step."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.plan.topology import Topology, parse, set_up

DOES_NOT_FIT = 3  # exit status
# Training examples of data sets named by URI. The size of other data sets is unknown here: the data need not be present.
KNOWN_SIZES = {"tfds:imagenet2012/train": 1_281_167, "tfds:cifar10/train": 50_000, "bundled:fashion_mnist/train": 60_000}
USABLE = {"tpu": 0.98, "gpu": 0.92, "cpu": 0.9}  # share of a device's memory; the runtime uses the rest


def main(
    config: ConfigDict, topology: str | None, *, as_json: bool = False, examples: int | None = None, analyse: bool = False,
    propose: bool = True, say: Callable[[str], None] = print,
) -> int:  # fmt: skip
    """Plan a config, print the plan, and return the exit status: 0, or 3 if the step does not fit into memory.

    analyse: estimate memory without compiling, as without a compiler for the devices. propose: if the step does not fit,
    search for a change of the config that does.
    """
    from ssl_jax.plan import report

    set_up(topology)
    if (topology or "local").startswith("local"):
        from ssl_jax.start import start_process

        start_process()
    wanted = dataclasses.replace(parse(topology), analysed=analyse)
    found = plan(config, wanted, examples=examples)
    if not found["memory"]["fits"] and propose:
        from ssl_jax.plan import auto, fit

        fixed, _ = auto.resolve(config, wanted.target)
        found["proposal"] = fit.proposal(fixed, wanted, needed=None if wanted.missing() else found["memory"]["peak"])
    say(json.dumps(found, indent=1) if as_json else "\n".join(report.lines(found)))
    return 0 if found["memory"]["fits"] else DOES_NOT_FIT


def plan(config: ConfigDict, topology: Topology, *, examples: int | None = None) -> dict[str, Any]:
    """Return the plan of a config on a topology, as values that JSON can hold.

    Compile the training step; without a compiler for the devices, estimate memory, with collectives and traffic None.
    examples: number of training examples, for a duration in epochs.
    """
    from ssl_jax.plan import analysis, compiled, costs, roofline
    from ssl_jax.plan.warnings import warnings_of

    missing = topology.missing()
    if missing:
        from ssl_jax.plan.fit import virtual

        parts, program = virtual(config, topology)
        step = compiled.Compiled(analysis.analysed(program, topology), 0.0)
        method = f"analysis, nothing is compiled; to compile: {missing}"
    else:
        parts, program = compiled.program_of(config, topology)
        step = compiled.compile_step(program, topology)
        method = f"compiled for {topology.target.kind} in {step.seconds:.0f} s"
    target, dtype, batch = topology.target, parts.training.dtype, parts.stream.batch_size
    model_flops = parts.task.flops() * batch
    parameters = compiled.parameters_by_part(program)
    executed = traffic = None
    kernels: dict[str, int] = {}
    if step.module is not None:
        executed, traffic = costs.matmul_flops(step.module) * program.mesh.size, costs.traffic(step.module)
        kernels = costs.attention_kernels(step.module)
    collectives = step.collectives
    bounds = roofline.roofline(
        target, dtype, flops=max(model_flops, executed or 0) / program.mesh.size, traffic=traffic,
        sent=sum(c.sent for c in collectives) if step.module is not None else None,
    )  # fmt: skip
    limit = memory_limit(topology)
    memory = step.memory
    facts = {
        "parameters": sum(parameters.values()),
        "mesh": dict(program.mesh.shape),
        "accumulation": parts.training.accumulation,
        "batch_size": batch,
        "attention": step.attention,
        "platform": target.platform,
    }
    return {
        **facts,
        "topology": topology.text,
        "devices": target.count,
        "kind": target.kind,
        "dtype": dtype,
        "method": method,
        "parts": dict(parameters),
        "model_flops": model_flops,
        "executed_flops": executed,
        "memory": {
            "by_kind": {f.name: getattr(memory, f.name) or 0 for f in dataclasses.fields(memory) if f.name != "measured"},
            "peak": memory.peak,
            "limit": limit,
            "fits": limit is None or memory.peak <= limit,
        },
        "collectives": costs.by_kind(collectives) if step.module is not None else None,
        "largest_collectives": largest(collectives),
        "traffic": traffic,
        "attention": step.attention + "".join(f"; {name} runs {n} times a step" for name, n in kernels.items()),
        "roofline": {"by_resource": dict(bounds.named), "seconds": bounds.seconds, "binds": bounds.binds},
        "chosen": dict(parts.chosen),
        "run": whole_run(parts, target, model_flops, examples),
        "warnings": warnings_of(collectives, facts),
    }


def memory_limit(topology: Topology) -> int | None:
    """Return the bytes of memory that a program can use on one device; None if unknown. A CPU's devices share its memory."""
    from ssl_jax.training.program import memory_of

    target, total = topology.target, topology.target.memory
    if topology.local:
        total = memory_of(topology.devices[0])
        if total is not None and target.platform == "cpu":
            total /= target.count
    return None if total is None else int(total * USABLE[target.platform])


def largest(collectives: list[Any], count: int = 6) -> list[dict[str, Any]]:
    """Return the `count` groups of equal collectives that move the most bytes in a step."""
    together: dict[tuple, dict[str, Any]] = {}
    for c in collectives:
        entry = together.setdefault(
            (c.kind, c.shape, c.loops),
            {"kind": c.kind, "shape": c.shape, "loops": list(c.loops), "count": 0, "bytes": 0, "from": c.op_name},
        )
        entry["count"] += c.count
        entry["bytes"] += c.total
    return sorted(together.values(), key=lambda entry: -entry["bytes"])[:count]


def whole_run(parts: Any, target: Any, model_flops: float, examples: int | None) -> dict[str, Any]:
    """Return the number of steps of the run, and its time and device-hours at each of `roofline.UTILISATIONS`."""
    from ssl_jax.config import Duration
    from ssl_jax.plan.roofline import UTILISATIONS, step_seconds
    from ssl_jax.task import tokens_of

    duration = Duration.parse(parts.training.duration, "training.duration")
    count = examples or KNOWN_SIZES.get(str(parts.config.data.get("train")))
    steps, assumed = None, ""
    if duration.unit == "epoch":
        assumed = f"{parts.training.duration} of {count:,} examples" if count else (
            f"{parts.training.duration} of an assumed 2^20 examples; give the real number as --examples=N")  # fmt: skip
    if duration.unit != "minute":
        steps = duration.steps(
            path="training.duration", batch_size=parts.stream.batch_size, examples=count or 2**20,
            tokens_per_example=tokens_of(parts.info),
        )  # fmt: skip
    times = []
    for share in UTILISATIONS:
        seconds = step_seconds(target, parts.training.dtype, model_flops, share)
        if seconds is not None and steps is not None:
            hours = seconds * steps * target.count / 3600
            times.append({"mfu": share, "step_seconds": seconds, "seconds": seconds * steps, "device_hours": hours})
    return {"steps": steps, "assumed": assumed, "times": times}
