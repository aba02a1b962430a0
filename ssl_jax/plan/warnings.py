"""What a compiled step shows that costs money: one line for each, with the number and what to change."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.plan.costs import Collective

MIB = 2**20


def warnings_of(found: Sequence[Collective], facts: Mapping[str, Any]) -> list[str]:
    """Return the warnings for a step.

    facts: "parameters" (their number), "mesh" (axis -> size), "accumulation", "batch_size", "temporaries" and "state" (bytes
    of a device), "vocabulary" (0: none), "attention" (the kernels' log line), "platform".
    """
    lines, mesh, accumulation = [], facts["mesh"], facts["accumulation"]
    gradient = 4 * facts["parameters"]
    summed = sum(c.total for c in found if c.kind in ("all-reduce", "reduce-scatter") and c.bytes > MIB)
    alone = mesh["data"] > 1 and mesh["fsdp"] == mesh["tensor"] == 1
    if alone and summed > 1.2 * gradient:
        lines.append(f"{summed / 1e9:.2f} GB are summed over the devices in a step, the gradient has {gradient / 1e9:.2f} GB")
    looped = [c for c in found if accumulation > 1 and c.loops[:1] == (accumulation,) and c.bytes > MIB]
    if alone and looped:
        total = sum(c.total for c in looped)
        lines.append(f"{len(looped)} collectives run in every microbatch ({total / 1e9:.2f} GB a step)")
    gathered: dict[tuple[str, str], int] = {}
    for c in found:
        if c.kind == "all-gather" and c.bytes > 16 * MIB:
            gathered[c.shape, c.op_name] = gathered.get((c.shape, c.op_name), 0) + c.repeats
    for (shape, _), count in gathered.items():
        if count > 2 * accumulation:
            lines.append(f"{shape} is gathered {count} times a step; keep it whole, or give its rows to fewer devices")
    exchanged = sum(c.total for c in found if c.kind in ("all-to-all", "collective-permute"))
    if exchanged > 0.1 * gradient and exchanged > 64 * MIB:
        lines.append(f"{exchanged / 1e9:.2f} GB a step in all-to-all and collective-permute: arrays change their layout;"
                     " split the batch over data and fsdp only")  # fmt: skip
    rows = facts["batch_size"] / accumulation / (mesh["data"] * mesh["fsdp"])
    if rows < 4:
        lines.append(
            f"a device has {rows:g} rows of a microbatch: matrix products are narrow; use fewer microbatches or devices"
        )
    slow = [kernel for kernel in facts["attention"].split("; ") if kernel.startswith("xla") and "are few" not in kernel]
    if slow and facts["platform"] != "cpu":
        lines.append(f"attention goes through XLA: {'; '.join(slow)}")
    return lines
