"""A plan as text."""

from collections.abc import Mapping
from typing import Any

from ssl_jax.overview import quantity
from ssl_jax.reports.page import duration

GIB = 2**30


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return a plan's facts, one per line, each after its name."""
    memory, mesh, pieces = found["memory"], found["mesh"], found["accumulation"]
    chosen = ", ".join(f"{key}={value}" for key, value in found["chosen"].items())
    rows: list[tuple[str, str]] = [
        ("topology", f"{found['topology']}: {found['devices']} x {found['kind']}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in mesh.items())),
        ("batch", f"{found['batch_size']:,} in {pieces} microbatch{'es' if pieces > 1 else ''}, {found['dtype']}"),
        *([("chosen by plan", chosen)] if chosen else []),
        ("method", found["method"]),
        ("parameters", f"{quantity(found['parameters'])}: " + _listed(found["parts"], quantity)),
        ("model FLOPs", f"{quantity(found['model_flops'])} a step, by formula"),
    ]
    if found["executed_flops"] is not None and found["model_flops"]:
        share = found["executed_flops"] / found["model_flops"]
        executed = f"{quantity(found['executed_flops'])} a step in the compiled matrix products"
        rows.append(("executed FLOPs", f"{executed}, {share:.2f} x the model's; without fused attention kernels"))
    rows += [
        ("memory", _listed({k: v for k, v in memory["by_kind"].items() if v}, lambda x: quantity(x, "B")) + " per device"),
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
        rows.append(("memory traffic", f"{quantity(found['traffic'], 'B')} a step, read and written by one device"))
    if found["attention"]:
        rows.append(("attention", found["attention"]))
    bounds = found["roofline"]
    if bounds["seconds"]:
        each = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in bounds["by_resource"].items())
        rows.append(("least step time", f"{each}; limited by {bounds['binds']}"))
    run = found["run"]
    if run["steps"] is not None:
        rows.append(("whole run", f"{run['steps']:,} steps" + (f" ({run['assumed']})" if run["assumed"] else "")))
        for one in run["times"]:
            beyond = "; below the least step time: out of reach" if one["step_seconds"] < (bounds["seconds"] or 0) else ""
            text = f"{1e3 * one['step_seconds']:.1f} ms a step, {duration(one['seconds'])}"
            rows.append((f"at {100 * one['mfu']:.0f} % MFU", f"{text}, {one['device_hours']:,.1f} device-hours{beyond}"))
    rows += [("warning", text) for text in found["warnings"]]
    if not memory["fits"]:
        none = "no change of recomputation, microbatches or mesh that was tried fits either; use more devices"
        rows.append(("DOES NOT FIT", found.get("proposal") or none))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _listed(values: Mapping[str, float], show: Any) -> str:
    return ", ".join(f"{name} {show(value)}" for name, value in sorted(values.items(), key=lambda kv: -kv[1]))


def _peak(memory: Mapping[str, Any]) -> str:
    text = f"{memory['peak'] / GIB:.2f} GiB"
    if memory["limit"] is None:
        return f"{text} per device; the size of a device's memory is unknown"
    verdict = "fits" if memory["fits"] else "does not fit"
    return f"{text} of {memory['limit'] / GIB:.2f} usable: {verdict}"
