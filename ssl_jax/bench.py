"""Measure how fast a config trains on this machine, relative to the machine's peak and to the reference classes.

The loop's own compiled step is timed on the config's own data, including augmentation. The peer reads random batches from
memory and has no data pipeline.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import bench_peer, devices, runs
from ssl_jax.errors import UserError

ALTERNATIONS = 5  # alternating blocks of each side
BLOCK_SECONDS = 2.0
UNKNOWN_PEAK = "(a device that is not in the table, or a CPU too busy to be measured)"
WINDOW = 4  # calls
WARM_UP = 3  # untimed steps at the beginning


class Ours:
    """The training step of a config on one device, compiled, with its stream of batches."""

    def __init__(self, parts: Any):
        from ssl_jax.training import sharding
        from ssl_jax.training.program import Program

        self.parts, self.task = parts, parts.task
        mesh = parts.mesh  # a CPU's cores, else one device
        if jax.default_backend() != "cpu":
            mesh = sharding.make_mesh(dataclasses.replace(parts.mesh_settings, data=1, fsdp=1, tensor=1), jax.devices()[:1])
        with _no_cache():
            self.step = Program(
                parts.task,
                parts.stream,
                training=parts.training,
                optimizer=parts.optimizer,
                schedules=parts.schedules,
                mesh=mesh,
                mesh_rules=parts.mesh_settings.rules,
            )
            self.count = self.step.steps_per_call
            self.resident = sharding.put_replicated(parts.stream.resident, self.step.mesh)
            start = time.perf_counter()
            self.program = self.step.compiled(self.count, self.resident)
            self.compile_s = time.perf_counter() - start
            one = self.step.compiled(1, self.resident)  # XLA counts the body of a loop over steps once
            flops = _flops(one.cost_analysis())  # of one device
            self.xla_flops = None if flops is None else flops * mesh.size
            batch = parts.stream.batch_size
            length = 1_000_000  # far from the end of the schedule
            numbers = self.step.hyper(batch_size=batch, seed=0, total_steps=length, warmup_steps=1, cooldown_steps=1)
            self.state = self.step.create(numbers)
        self.parameters = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(self.state.params))
        self._batches, self.waited = None, 0.0
        self.run(WARM_UP)

    def run(self, steps: int) -> list[float]:
        """Return the seconds of each of `steps` steps, averaged over WINDOW calls; metrics are read one call late.

        Single calls are not reliable: an asynchronous runtime may return the results of two calls at once.
        """
        if self._batches is None:
            from ssl_jax.training.prefetch import Prefetch

            stream = self.parts.stream.iterate(0, self.step.rows)
            self._batches = Prefetch(stream, itertools.repeat(self.count), self.step.put)
        calls = -(-steps // self.count)
        waited, pending, times = self._batches.waited, None, [time.perf_counter()]
        for _ in range(calls):
            self.state, metrics = self.program(self.state, next(self._batches), self.resident)
            if pending is not None:
                jax.block_until_ready(pending)
                times.append(time.perf_counter())
            pending = metrics
        self.last_metrics = jax.device_get(pending)
        times.append(time.perf_counter())
        self.waited = self._batches.waited - waited
        windows = np.array_split(np.diff(times), max(1, calls // WINDOW))
        return [float(np.mean(window)) / self.count for window in windows for _ in range(len(window) * self.count)]

    def close(self) -> None:
        """Stop reading data; the next `run` starts again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class _no_cache:
    """A context that disables the compilation cache on disk, so that compilation is really timed."""

    def __enter__(self):
        self._setting = os.environ.get("SSL_JAX_CACHE")
        self._directory = jax.config.jax_compilation_cache_dir
        os.environ["SSL_JAX_CACHE"] = "off"
        jax.config.update("jax_compilation_cache_dir", None)

    def __exit__(self, *error):
        os.environ.pop("SSL_JAX_CACHE")
        if self._setting is not None:
            os.environ["SSL_JAX_CACHE"] = self._setting
        jax.config.update("jax_compilation_cache_dir", self._directory)


def _flops(cost: Any) -> float | None:
    """Return XLA's count of FLOPs, or None if the backend has none."""
    cost = cost[0] if isinstance(cost, list | tuple) and cost else cost
    return float(cost["flops"]) if isinstance(cost, Mapping) and cost.get("flops", 0) > 0 else None


def bench(config: ConfigDict, *, steps: int | None = None, peer: bool = False, json_out: str | None = None,
          say: Callable[[str], None] = print) -> dict[str, Any]:  # fmt: skip
    """Measure a config on one device; print the measurements, return them, and write them to `json_out` if given.

    steps: timed steps, with `peer` per block; default: as many as take a few seconds. Raise UserError before anything is
    compiled if there is no peer for the config or if `json_out` cannot be written.
    """
    if steps is not None and not 1 <= steps <= 1_000_000:
        raise UserError(f"--steps={steps}: must lie between 1 and 1,000,000")
    if json_out is not None and not pathlib.Path(json_out).absolute().parent.is_dir():
        raise UserError(f"--json={json_out}: its folder does not exist; make it first")
    parts = runs.prepare(config)
    spec = bench_peer.reference(parts.task, config) if peer else None
    found = measure(parts, steps=steps, spec=spec, name=str(config.task.get("name")), say=say)
    for line in lines(found):
        say(line)
    if json_out is not None:
        pathlib.Path(json_out).write_text(json.dumps(found, indent=2) + "\n")
    return found


def measure(parts: Any, *, steps: int | None = None, spec: Mapping[str, Any] | None = None, name: str = "",
            say: Callable[[str], None] = print, alternations: int = ALTERNATIONS) -> dict[str, Any]:  # fmt: skip
    """Return everything that `bench` prints as a dictionary. `spec` is the peer's (bench_peer.reference)."""
    from ssl_jax.task import tokens_of

    device, dtype = jax.devices()[0], parts.training.dtype
    peak = devices.peak(device, dtype)  # before the step, because a CPU's peak is measured, which needs an idle process
    ours = Ours(parts)
    batch, tokens = parts.stream.batch_size, tokens_of(parts.info)
    once = float(np.median(ours.run(3 * ours.count)))
    block = steps or int(np.clip(round(BLOCK_SECONDS / once), 3, 1000))
    found: dict[str, Any] = {
        "task": name,
        "device": {
            "kind": device.device_kind,
            "platform": device.platform,
            "cores": devices.cores(),
            "host": devices.processor(),
        },
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "batch_size": batch,
        "dtype": dtype,
        "parameters": ours.parameters,
        "compile_s": ours.compile_s,
        "steps_per_call": ours.count,
    }
    model_flops = parts.task.flops() * batch
    if spec is None:
        start = time.perf_counter()
        times = ours.run(max(block, 10))
        waited = ours.waited / (time.perf_counter() - start)
    else:
        found["peer"], times, waited = alternate(ours, spec, block, parts, alternations, say)
    ours.close()
    times = np.array(times)
    per_second = 1 / float(np.median(times))
    memory = devices.peak_memory(device)
    mfu = None if peak is None else model_flops * per_second / peak.flops
    if mfu is not None and mfu > 1:  # other processes slowed the measurement of a CPU's peak
        peak, mfu = None, None
    found |= {
        "step_ms": {"median": 1e3 * float(np.median(times)), "p10": 1e3 * float(np.quantile(times, 0.1)),
                    "p90": 1e3 * float(np.quantile(times, 0.9)), "steps": len(times)},
        "examples_per_s": batch * per_second,
        "tokens_per_s": batch * tokens * per_second if tokens > 1 else None,
        "model_flops_per_step": model_flops,
        "xla_flops_per_step": ours.xla_flops,
        "peak_flops": None if peak is None else peak.flops,
        "peak_source": None if peak is None else peak.source,
        "mfu": mfu,
        "hfu": None if peak is None or ours.xla_flops is None else ours.xla_flops * per_second / peak.flops,
        "memory_bytes": None if memory is None else memory[0],
        "memory_what": None if memory is None else memory[1],
        "data_wait": waited,
        "loss": float(np.ravel(ours.last_metrics["loss"])[-1]),
    }  # fmt: skip
    return found


def alternate(ours: Ours, spec: Mapping[str, Any], block: int, parts: Any, alternations: int,
           say: Callable[[str], None]) -> tuple[dict[str, Any], list[float], float]:  # fmt: skip
    """Time blocks of steps alternately: ours, eager, compiled, ours, ...

    Return (the peer's figures, our step times, our share of time waiting for data). Each block begins with an untimed call of
    ours, or as many steps of the peer's, because a pause empties caches and returns memory to the kernel.
    """
    settings = parts.optimizer
    if settings.name != "adamw":
        raise UserError(
            f"--peer: optimizer.name={settings.name!r}: the reference is trained with adamw; set optimizer.name=adamw"
        )
    given = lambda value, default: default if value is None else value
    optimizer = dict(lr=settings.peak(parts.stream.batch_size), b1=given(settings.b1, 0.9), b2=given(settings.b2, 0.999),
                     eps=given(settings.eps, 1e-8), weight_decay=settings.weight_decay, clip=settings.clip)  # fmt: skip
    accelerator = "cuda" if jax.default_backend() == "gpu" else "cpu"
    peers: list[bench_peer.Peer] = []
    try:
        for compiled in (False, True):
            say(f"starting {spec['class']}, {'compiled' if compiled else 'eager'}")
            options = dict(dtype=parts.training.dtype, optimizer=optimizer, device=accelerator)
            peers.append(bench_peer.Peer(dict(spec), compiled=compiled, **options))
        seconds: dict[str, list[float]] = {"ours": [], **{peer.name: [] for peer in peers}}
        times, waited = [], 0.0
        for _ in range(alternations):
            ours.run(ours.count)
            mine = ours.run(block)
            times += mine
            waited += ours.waited
            seconds["ours"].append(float(np.sum(mine)) / len(mine))
            ours.close()  # its reader must not run while the others are timed
            for peer in peers:
                seconds[peer.name].append(peer.run(block, untimed=ours.count) / block)
        about = {peer.name: {**peer.about, **peer.close()} for peer in peers}
    finally:
        for peer in peers:
            peer.kill()
    faster = min(("eager", "compiled"), key=lambda name: np.median(seconds[name]))
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds[faster], strict=True)]
    found = {
        "class": spec["class"],
        "differs": spec.get("differs"),
        "alternations": alternations,
        "steps_per_block": block,
        "step_ms": {name: [1e3 * s for s in values] for name, values in seconds.items()},
        "examples_per_s": {name: parts.stream.batch_size / float(np.median(values)) for name, values in seconds.items()},
        "faster": faster,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "about": about,
    }
    return found, times, waited / float(np.sum(times))


# Printing -----------------------------------------------------------------------------------------------------------


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the measurements as lines, one per quantity; unknown quantities are named too."""
    device, step = found["device"], found["step_ms"]
    where = f"{device['cores']} cores, {device['host']}" if device["platform"] == "cpu" else device["kind"]
    rate = f"{found['examples_per_s']:,.4g} examples/s"
    if found["tokens_per_s"]:
        rate = f"{found['tokens_per_s']:,.4g} tokens/s ({rate})"
    rows = [
        ("device", f"{device['kind']} ({where})"),
        ("model", f"{found['parameters']:,} parameters, batch {found['batch_size']}, {found['dtype']}"),
        ("compile", f"{found['compile_s']:.1f} s"),
        ("step", f"{step['median']:.2f} ms median, {step['p10']:.2f} p10, {step['p90']:.2f} p90, over {step['steps']} steps"),
        ("throughput", rate),
        ("model FLOPs", f"{found['model_flops_per_step']:.4g} per step, by formula: matmuls, causal attention counts half"),
        ("XLA FLOPs", _or_unknown(found["xla_flops_per_step"], "{:.4g} per step, by XLA's cost analysis")),
        ("peak", _or_unknown(found["peak_flops"], "{:.4g} FLOP/s, " + str(found["peak_source"]), UNKNOWN_PEAK)),
        ("MFU", _percent(found["mfu"]) + (f", hardware FLOPs {_percent(found['hfu'])}" if found["hfu"] else "")),
        ("memory", _or_unknown(found["memory_bytes"], "{:,.0f} bytes, " + str(found["memory_what"]))),
        ("data wait", f"{_percent(found['data_wait'])} of the time"),
    ]
    if "peer" in found:
        peer = found["peer"]
        for name, value in peer["examples_per_s"].items():
            label = "ours" if name == "ours" else f"{peer['class']}, {name}"
            rows.append((label, f"{value:,.4g} examples/s, {np.median(peer['step_ms'][name]):.2f} ms"))
        low, high = min(peer["ratios"]), max(peer["ratios"])
        each = f"{peer['alternations']} alternations of {peer['steps_per_block']} steps"
        rows.append(
            ("ratio", f"{peer['ratio']:.2f} x the faster, {peer['faster']} (median of {each}; {low:.2f} to {high:.2f})")
        )
        theirs = next(iter(peer["about"].values()))["parameters"]
        if theirs != found["parameters"]:
            rows.append(("parameters", f"{found['parameters']:,} ours, {theirs:,} theirs"))
        if peer.get("differs"):
            rows.append(("differs", peer["differs"]))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {text}" for name, text in rows]


def _or_unknown(value: float | None, text: str, what: str = "") -> str:
    return f"unknown {what}".strip() if value is None else text.format(value)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def table(measured: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Return several measurements as a Markdown table: name, ours, eager, compiled, ratio, MFU."""
    from ssl_jax.reports.tables import markdown

    body = []
    for name, found in measured:
        peer = found.get("peer")
        unit = found["tokens_per_s"] / found["examples_per_s"] if found["tokens_per_s"] else 1
        rate = lambda side: f"{peer['examples_per_s'][side] * unit:,.0f}" if peer else ""  # noqa: B023
        ours = rate("ours") or f"{found['examples_per_s'] * unit:,.0f}"
        ratio = f"{peer['ratio']:.2f}" if peer else ""
        kind = "tokens/s" if found["tokens_per_s"] else "images/s"
        body.append([name, kind, ours, rate("eager"), rate("compiled"), ratio, _percent(found["mfu"])])
    return markdown(["", "unit", "ours", "eager", "compiled", "ratio to the faster", "MFU"], body)
