"""Where the time of a training step goes: JAX's profiler, summed by the kind of operation and by the part of the model.

    python experiments/throughput/breakdown.py --config=configs/mae/fashion_mnist.py
    python experiments/throughput/breakdown.py --shape='image-text'

An operation's time excludes the operations that it calls; times are milliseconds per step on one device (on a CPU: one core).
Only the compiled step is traced, not the loading of data. A CPU device waits for the others when gradients are summed.
"""

import argparse
import collections
import pathlib
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import shapes  # noqa: E402

from ssl_jax import bench  # noqa: E402
from ssl_jax import config as configs  # noqa: E402
from ssl_jax.reports.tables import markdown  # noqa: E402

KINDS = {  # a fusion has the first kind with one of its operations
    "matrix products, with fused operations": ("dot", "convolution", "custom-call"),
    "sums of gradients over the devices, and waiting": ("all-reduce", "all-gather", "reduce-scatter"),
    "activations (erf, tanh, exp, log)": ("erf", "tanh", "exponential", "log", "logistic"),
    "sums and norms": ("reduce", "reduce-window"),
    "lookups": ("gather", "scatter", "sort"),
    "other loops over elements": ("add", "subtract", "multiply", "divide", "select", "maximum", "rsqrt", "sqrt", "xor"),
}
COPIES = "copies, transposes, casts"
PARTS = {  # the first one in an operation's name in JAX
    "norms": "norm",  # first: a norm is named after the branch that follows it
    "attention": "attention",
    "MLP": "mlp",
}


def instructions(program: str) -> dict[str, tuple[str, str]]:
    """Return {instruction: (kind, its name in JAX)} of a compiled program's text."""
    computations, found, current = collections.defaultdict(set), {}, ""
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) (?:\([^=]*\) -> .*)?\{", line):
            current = head[1]
        elif made := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = .*?[\s)}\]]([a-z][\w-]*)\(", line):
            computations[current].add(made[2])
            called = re.search(r"calls=%?([\w.-]+)", line)
            name = re.search(r'op_name="([^"]*)"', line)
            found[made[1]] = (made[2], called[1] if called else None, name[1] if name else "")
    return {name: (kind({opcode} if inner is None else computations[inner]), where)
            for name, (opcode, inner, where) in found.items()}  # fmt: skip


def kind(opcodes: set[str]) -> str:
    return next((name for name, members in KINDS.items() if opcodes & set(members)), COPIES)


def own_times(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    """Yield (name, seconds excluding nested events) of one thread's events (start, end, name)."""
    open_events: list[list[Any]] = []
    for start, end, name in sorted(events, key=lambda e: (e[0], -e[1])):
        while open_events and open_events[-1][1] <= start:
            yield tuple(open_events.pop()[2:])
        if open_events:
            open_events[-1][3] -= min(end, open_events[-1][1]) - start
        open_events.append([start, end, name, end - start])
    for event in open_events:
        yield tuple(event[2:])


def trace(parts: Any, steps: int) -> tuple[dict[str, float], dict[str, tuple[str, str]], float, str]:
    """Return ({instruction: ms per step on one device}, its kind and name, wall ms per step, a line on memory)."""
    ours = bench.Ours(parts)
    known = instructions(ours.program.as_text())
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    count = len(ours.run(steps))
    faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / count
    held = ours.program.memory_analysis().temp_size_in_bytes / 1e6
    memory = f"working memory of a call of {ours.count} steps: {held:,.0f} MB; {faults:,.0f} page faults per step"
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.host_tracer_level = 3  # every operation of a CPU
        jax.profiler.start_trace(folder, profiler_options=options)
        times = ours.run(steps)
        jax.profiler.stop_trace()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        spent: dict[str, float] = collections.Counter()
        for plane in planes:
            for line in plane.lines:
                events = [(e.start_ns, e.start_ns + e.duration_ns, e.name) for e in line.events if e.name in known]
                for name, ns in own_times(events):
                    spent[name] += ns / 1e6 / len(times) / ours.step.mesh.size
    ours.close()
    return spent, known, 1e3 * sum(times) / len(times), memory


def part(name: str) -> str:
    return next((p for p, mark in PARTS.items() if mark in name), "the rest")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", help="a config file, with its own data")
    parser.add_argument("--shape", help="or a shape of cpu.py, by a part of its name")
    parser.add_argument("--dtype", default="float32", help="of the shape")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--top", type=int, default=0, help="list this many of the most expensive operations")
    arguments, changes = parser.parse_known_args()
    if (arguments.config is None) == (arguments.shape is None):
        parser.error("give --config or --shape")
    if arguments.config:
        overrides = dict(change.removeprefix("--config.").split("=", 1) for change in changes)
        shape = configs.load(arguments.config, overrides)
    else:
        named = [shape for name, shape in shapes.cpu(arguments.dtype).items() if arguments.shape in name]
        if len(named) != 1 or changes:
            parser.error(f"--shape must be a part of one name among {', '.join(shapes.cpu())}, and takes no changes")
        (shape,) = named
    spent, known, clock, memory = trace(shapes.prepare(shape), arguments.steps)
    for title, of in (("kind of operation", lambda n: known[n][0]), ("part of the step", lambda n: part(known[n][1]))):
        sums: dict[str, float] = collections.Counter()
        for name, ms in spent.items():
            sums[of(name)] += ms
        rows = [[key, f"{ms:.2f}", f"{100 * ms / clock:.0f} %"] for key, ms in sorted(sums.items(), key=lambda i: -i[1])]
        rows.append(["between operations", f"{clock - sum(sums.values()):.2f}", ""])
        print(markdown([title, "ms", "share"], [*rows, ["wall time of a step", f"{clock:.2f}", ""]]), end="\n\n")
    print(memory)
    for name, ms in sorted(spent.items(), key=lambda i: -i[1])[: arguments.top]:
        print(f"{ms:7.3f}  {name:40s} {known[name][0][:16]:16s} {known[name][1][-90:]}")


if __name__ == "__main__":
    main()
