"""Warnings of a plan: what makes a compiled step slow, with its size and what to change."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.plan.costs import Collective

MIB = 2**20


def warnings_of(found: Sequence[Collective], facts: Mapping[str, Any]) -> list[str]:
    """Return one line for each cause of a slow or imprecise step.

    found: the collectives of a step. facts: "parameters" (their number), "mesh" (axis -> devices), "accumulation",
    "batch_size", "attention" (the kernels as the models log them) and "platform".
    """
    lines, mesh, accumulation = [], facts["mesh"], facts["accumulation"]
    gradient = 4 * facts["parameters"]
    sums = [c for c in found if c.kind in ("all-reduce", "reduce-scatter") and c.bytes > MIB]
    summed = sum(c.total for c in sums)
    only_data = mesh["data"] > 1 and mesh["fsdp"] == mesh["tensor"] == 1
    both = mesh["data"] > 1 and mesh["fsdp"] > 1  # summed over fsdp, then each device's part over data
    once = gradient * (1 + 1 / mesh["fsdp"] if both else 1)
    if mesh["tensor"] == 1 and summed > 1.2 * once:
        lines.append(f"devices sum {summed / 1e9:.2f} GB a step, but the gradient has {gradient / 1e9:.2f} GB: gradients are"
                     " summed more than once, or activations are summed too")  # fmt: skip
    looped = [c for c in found if accumulation > 1 and c.loops[:1] == (accumulation,) and c.bytes > MIB]
    if only_data and looped:
        total = sum(c.total for c in looped)
        lines.append(f"{len(looped)} collectives run once per microbatch ({total / 1e9:.2f} GB a step), not once per step")
    narrow = sum(c.total for c in sums if not c.shape.startswith("f32"))
    if mesh["tensor"] == 1 and narrow:
        lines.append(f"devices sum {narrow / 1e9:.2f} GB a step in less than 32 bits, which rounds the gradient")
    gathered: dict[tuple[str, str], int] = {}
    for c in found:
        if c.kind == "all-gather" and c.bytes > 16 * MIB:
            gathered[c.shape, c.op_name] = gathered.get((c.shape, c.op_name), 0) + c.repeats
    for (shape, _), count in gathered.items():
        if count > 2 * accumulation:
            lines.append(f"{shape} is gathered {count} times a step: replicate it with mesh.rules, or use a smaller mesh.fsdp")
    exchanged = sum(c.total for c in found if c.kind in ("all-to-all", "collective-permute"))
    if exchanged > 0.1 * gradient and exchanged > 64 * MIB:
        lines.append(f"arrays change their sharding: {exchanged / 1e9:.2f} GB a step in all-to-all and collective-permute;"
                     " use a smaller mesh.fsdp or mesh.tensor")  # fmt: skip
    rows = facts["batch_size"] / accumulation / (mesh["data"] * mesh["fsdp"])
    if rows < 4:
        lines.append(f"a device computes {rows:g} examples at a time, which leaves its matrix units partly idle: use fewer"
                     " microbatches (training.accumulation) or fewer devices")  # fmt: skip
    slow = [kernel for kernel in facts["attention"].split("; ") if kernel.startswith("xla") and "are few" not in kernel]
    if slow and facts["platform"] != "cpu":
        lines.append(f"attention without a fused kernel: {'; '.join(slow)}")
    return lines
