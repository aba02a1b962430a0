"""What a plan found, as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.overview import quantity
from ssl_jax.reports.page import duration

GIB = 2**30


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the plan, a line a fact."""
    memory, mesh = found["memory"], found["mesh"]
    rows: list[tuple[str, str]] = [
        ("topology", f"{found['topology']}: {found['devices']} x {found['kind']}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in mesh.items())),
        ("batch", f"{found['batch_size']:,} in {found['accumulation']} microbatches, {found['dtype']}"),
        *([("chosen", ", ".join(f"{key}={value}" for key, value in found["chosen"].items()))] if found["chosen"] else []),
        ("method", found["method"]),
        ("parameters", f"{quantity(found['parameters'])}: " + _listed(found["parts"], quantity)),
        ("model FLOPs", f"{quantity(found['model_flops'])} a step, by formula"),
    ]
    if found["executed_flops"] is not None and found["model_flops"]:
        share = found["executed_flops"] / found["model_flops"]
        rows.append(("products", f"{quantity(found['executed_flops'])} in matrix products of the program, {share:.2f} x the"
                     " model's; fused kernels not counted"))  # fmt: skip
    rows += [
        ("memory", _listed({k: v for k, v in memory["by_kind"].items() if v}, lambda x: quantity(x, "B")) + " a device"),
        ("peak", _peak(memory)),
    ]
    if found["collectives"] is not None:
        for kind, entry in found["collectives"].items():
            rows.append((kind, f"{entry['count']:,} x, {quantity(entry['bytes'], 'B')} a step"))
        if not found["collectives"]:
            rows.append(("collectives", "none"))
        for one in found["largest_collectives"]:
            looped = f" in loops of {' x '.join(map(str, one['loops']))}" if one["loops"] else ""
            rows.append(("", f"  {one['kind']} {one['shape']} x{one['count']}{looped}, {quantity(one['bytes'], 'B')}"))
    if found["traffic"] is not None:
        rows.append(("traffic", f"{quantity(found['traffic'], 'B')} a step between a device and its memory"))
    if found["attention"]:
        rows.append(("attention", found["attention"]))
    bounds = found["roofline"]
    if bounds["seconds"]:
        each = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in bounds["by_resource"].items())
        rows.append(("roofline", f"{each}; {bounds['binds']} binds"))
    run = found["run"]
    if run["steps"] is not None:
        rows.append(("run", f"{run['steps']:,} steps" + (f" ({run['assumed']})" if run["assumed"] else "")))
        for one in run["times"]:
            text = f"{1e3 * one['step_seconds']:.1f} ms a step, {duration(one['seconds'])}"
            rows.append((f"at {100 * one['mfu']:.0f} % MFU", f"{text}, {one['device_hours']:,.1f} device-hours"))
    rows += [("warning", text) for text in found["warnings"]]
    if not memory["fits"]:
        rows.append(("DOES NOT FIT", found.get("proposal") or "no setting that was tried fits; use more devices"))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _listed(values: Mapping[str, float], show: Any) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in sorted(values.items(), key=lambda kv: -kv[1]))


def _peak(memory: Mapping[str, Any]) -> str:
    text = f"{memory['peak'] / GIB:.2f} GiB"
    if memory["limit"] is None:
        return f"{text}; the device's memory is not known"
    verdict = "fits" if memory["fits"] else "does not fit"
    return f"{text} of {memory['limit'] / GIB:.2f}: {verdict}"


def markdown(plans: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return plans as the table of docs/scale.md."""
    head = ("config", "topology", "mesh", "peak GiB", "summed, gathered GB", "gradient GB", "traffic GB",
            "compute, memory, interconnect ms")  # fmt: skip
    body = []
    for name, p in plans:
        sums = p["collectives"] or {}
        total = lambda *kinds: sum(sums.get(k, {"bytes": 0})["bytes"] for k in kinds) / 1e9  # noqa: B023
        times = p["roofline"]["by_resource"]
        ms = ", ".join(f"{1e3 * times[n]:.0f}" if n in times else "-" for n in ("compute", "memory", "interconnect"))
        body.append((name, p["topology"], " x ".join(map(str, p["mesh"].values())), f"{p['memory']['peak'] / GIB:.1f}",
                     f"{total('all-reduce', 'reduce-scatter'):.2f}, {total('all-gather'):.2f}", f"{4e-9 * p['parameters']:.2f}",
                     f"{(p['traffic'] or 0) / 1e9:.0f}", ms))  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *body))
