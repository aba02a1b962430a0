"""The evidence of a run: its evaluators' records, during training and at the end, panels, the short table, the page."""

import contextlib
import time
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.resume import fingerprint
from ssl_jax.task import Context, Params
from ssl_jax.workdir import Workdir

PANEL_EXAMPLES = 8


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, flush=True)


def check_evaluation(parts: Any) -> None:
    """Check every evaluator and the data it reads before training."""
    from ssl_jax.training.index_ranges import check_dataset

    check_dataset(parts.task, parts.evaluation.data.test)
    parts.evaluation.check()


def evaluate_all(
    parts: Any, wd: Workdir, params: Params, step: int, *, name: str = "results.json", again: bool = False,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Run every evaluator once and write its results as soon as it ends, so that a killed run goes on with the next."""
    from ssl_jax.reports import records
    from ssl_jax.training.checkpoint import load_params

    file, log = name.replace("results", "records", 1), (lambda text: None) if quiet else say
    stored = {} if again else wd.read(file, {})
    done = {} if again else dict(wd.status().get("evaluated", {}))
    timings = wd.read("timings.json", {})
    cache = wd.path / "features" if parts.checkpoint.features else None
    if parts.evaluators:
        evaluation = parts.evaluation
        encoders = {"ema": evaluation.encoder(params, cache, f"step {step}")}
        if any(evaluator.weights == "student" for evaluator in parts.evaluators.values()):
            _, student = load_params(wd.path / "checkpoints", step, average=False)
            encoders["student"] = evaluation.encoder(student, cache, f"step {step} student")
    for key, evaluator in parts.evaluators.items():
        mark = fingerprint(parts.config.downstream[key])
        if done.get(key) == mark and key in stored:
            continue
        started = time.monotonic()
        found = evaluation.measure(key, encoders, workdir=str(wd.path), log=log)
        stored |= {key: []} | records.to_json(found)
        timings[key] = time.monotonic() - started
        stored |= records.to_json(skipped_examples(evaluation.data))
        done[key] = mark
        wd.write(file, stored)
        wd.write(name, records.flat(records.from_json(stored)))
        if name == "results.json":
            wd.write("timings.json", timings)
            wd.write("status.json", {**wd.status(), "evaluated": done})
        if found:
            note = f"; {evaluator.note}" if evaluator.note else ""
            log(f"{found[0].name} {found[0].value:.4g}  ({timings[key]:.1f} s){note}")
    if not parts.evaluators and name == "results.json":
        wd.write(file, {})
        wd.write(name, {})
        wd.write("status.json", {**wd.status(), "evaluated": {}})


def skipped_examples(evaluation: Any) -> list[Any]:
    """Return how many examples of each split were skipped ("data/test/skipped"), where any were."""
    from ssl_jax.reports.records import Record

    counts = {split: getattr(evaluation, split).skipped() for split in ("train", "test")}
    return [Record("skipped", float(n), setting=split, evaluator="data") for split, n in counts.items() if n]


def evaluate_during(parts: Any, state: Any) -> dict[str, float]:
    """The evaluators named in training.evaluators (all where none are named), while training goes on."""
    from ssl_jax.reports.records import flat

    evaluation = parts.evaluation
    student = evaluation.encoder(state.params)
    encoders = {"ema": student if state.ema is None else evaluation.encoder(state.ema), "student": student}
    chosen = parts.training.evaluators or tuple(parts.evaluators)
    return flat(record for name in chosen for record in evaluation.measure(name, encoders))


def panel_batch(dataset: Any, count: int = PANEL_EXAMPLES) -> dict[str, Any]:
    """`count` evenly spaced examples under the evaluation transform, as a task's batch."""
    from ssl_jax.data.pipeline import eval_batches, subset

    index = np.linspace(0, dataset.size - 1, min(count, dataset.size)).astype(int)
    raw, _ = next(iter(eval_batches(subset(dataset, index), len(index))))
    places = {name: raw.pop(name) for name in ("position", "index")}
    return {**dataset.on_device(raw, None), **places}


def write_panels(parts: Any, wd: Workdir, params: Params) -> None:
    from ssl_jax.randomness import stream
    from ssl_jax.reports.panels import save_panels
    from ssl_jax.training.checkpoint import load_variables

    with contextlib.suppress(FileNotFoundError):
        dataset = parts.dataset("test", False) if _has_test(parts) else parts.dataset("train", False)
        key, context = stream(parts.config.get("seed", 0), "panels"), Context(variables=load_variables(wd.path / "checkpoints"))
        panels = parts.task.panels(params, panel_batch(dataset), key, context=context)
        save_panels(panels, wd.path / "panels")


def _has_test(parts: Any) -> bool:
    try:
        parts.dataset("test", False)
    except UserError:
        return False
    return True


def write_report(wd: Workdir, config: ConfigDict) -> None:
    from ssl_jax.reports.report import write_report as write

    page = write(wd.path)
    show_results(wd, config)
    say(f"report: {page}")


def show_results(wd: Workdir, config: ConfigDict) -> None:
    """Print the short table: each evaluator's headline beside its baselines."""
    from ssl_jax.reports.records import from_json
    from ssl_jax.reports.tables import short_table

    found = from_json(wd.read("records.json", {}))
    if found:
        say(short_table(found, {name: tuple(ends) for name, ends in (config.get("expected") or {}).items()}))
