"""Shared by the experiments on text: fine-tuning runs with the package's own tasks and loop, and their statistics."""

import copy
import json
import os
import pathlib
import platform
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax import runs
from ssl_jax.reports.records import flat

SHOWN = ("accuracy", "f1", "exact_match", "bleu", "seconds", "steps")


def finetuned(config: dict[str, Any], seeds: Sequence[int], init: str | None, memory: str, key: str) -> list[dict[str, float]]:
    """Return the evaluators' results of a supervised task, one run per seed, from `init` (a work directory, hf:DIR) or scratch.

    The seed determines the head, the dropout and the order of the data. Results are saved in the JSON file `memory` under
    `key`, so that a stopped experiment resumes with the next run.
    """
    file, found = pathlib.Path(memory), []
    for seed in seeds:
        name = f"{key}/seed {seed}"
        known = json.loads(file.read_text()) if file.is_file() else {}
        if name not in known:
            section = ConfigDict(copy.deepcopy(config))
            section.seed = seed
            section.task.init = init
            known[name] = trained(section)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known, indent=1) + "\n")
            print(name, {k: round(v, 4) for k, v in known[name].items() if k.split("/")[-1] in SHOWN}, flush=True)
        found.append(known[name])
    return found


def trained(config: ConfigDict) -> dict[str, float]:
    """Train as `ssl-jax run`, but without a work directory, and evaluate."""
    from ssl_jax.training.loop import train

    parts = runs.prepare(config)
    started = time.monotonic()
    state = train(
        parts.task, parts.stream, training=parts.training, optimizer=parts.optimizer, seed=config.seed,
        mesh=parts.mesh_settings, init_params=parts.initial, quiet=True,
    )  # fmt: skip
    seconds = time.monotonic() - started
    evaluation = parts.evaluation
    encoder = evaluation.encoder(state.params if state.ema is None else state.ema)
    results: dict[str, float] = {"seconds": seconds, "steps": float(state.step)}
    for name in parts.evaluators:
        results |= flat(evaluation.measure(name, {"ema": encoder}))
    return results


def statistics(results: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Return mean, standard deviation (n - 1) and the values of every metric over the runs."""
    table = {}
    for name in results[0]:
        values = [r[name] for r in results if name in r]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        table[name] = {"mean": float(np.mean(values)), "sd": deviation, "values": values}
    return table


def machine() -> str:
    """Return the processor's name, if known, and the number of cores that this process may use."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} core{'s' * (cores != 1)}, {name}, {platform.system()}"


def save(path: str, name: str, found: dict[str, Any]) -> None:
    """Write `found` under `name` into the JSON file `path`, without changing other entries."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = json.loads(file.read_text()) if file.is_file() else {}
    everything[name] = found
    everything["machine"] = machine()
    file.write_text(json.dumps(everything, indent=1) + "\n")


def show(name: str, arms: dict[str, dict[str, dict[str, Any]]], metric: str) -> None:
    for arm, table in arms.items():
        row = table[metric]
        print(f"{name:24s} {arm:14s} {metric} {row['mean']:.4f} +- {row['sd']:.4f}  {row['values']}", flush=True)
