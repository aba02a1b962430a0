"""The evidence of a run: results of its evaluators during training and at the end, panels, summary table, report."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax.config import nearest
from ssl_jax.errors import UserError
from ssl_jax.resume import evaluator_sections, fingerprint, stored_selection
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


def check_selection(parts: Any, wd: Workdir, log: Callable[[str], None] = say) -> Any:
    """Evaluate the metric checkpoint.best once, on untrained parameters, to find a wrong name before training.

    Return the parts with the metric's direction as checkpoint.mode. Raise UserError, with the nearest name, for a metric
    that no evaluator yields.
    """
    best, evaluation = parts.checkpoint.best, parts.selection
    if best is None:
        return parts
    selection = stored_selection(wd)
    if selection.get("metric") != best or parts.checkpoint.mode not in (None, selection["mode"]):
        name = best.partition("/")[0]
        if name not in evaluation.evaluators:
            known = evaluation.evaluators
            raise UserError(f"checkpoint.best={best!r}: {name!r} is not evaluated during training{nearest(name, known)}")
        evaluation.check()
        record = untrained(parts, evaluation, name, best, log)
        selection = {"metric": best, "mode": "min" if record.lower_is_better else "max"}
    mode = parts.checkpoint.mode or selection["mode"]
    if mode != selection["mode"]:
        raise UserError(f"checkpoint.mode={mode!r}: the best {best} is the {'lowest' if mode == 'max' else 'highest'}; omit it")
    return dataclasses.replace(parts, checkpoint=dataclasses.replace(parts.checkpoint, mode=mode))


def untrained(parts: Any, evaluation: Any, name: str, best: str, log: Callable[[str], None]) -> Any:
    """Return the record `best` of the evaluator `name` on untrained parameters."""
    import jax

    from ssl_jax.randomness import stream

    started = time.monotonic()
    batch = panel_batch(parts.part("train", False), 1)
    encoder = evaluation.encoder(jax.jit(parts.task.init)(stream(parts.config.get("seed", 0), "init"), batch))
    found = {record.name: record for record in evaluation.measure(name, {"ema": encoder, "student": encoder})}
    if not found:
        raise UserError(f"checkpoint.best={best!r}: {name} needs labels, but the training data have none; use another metric")
    if best not in found:
        raise UserError(f"checkpoint.best={best!r}: {name} yields no such result{nearest(best, found)}")
    seconds = time.monotonic() - started
    log(f"{best} {found[best].value:.4g} before training, on the examples held out for selection ({seconds:.1f} s)")
    return found[best]


def evaluate_all(
    parts: Any, wd: Workdir, params: Params, step: int, *, name: str = "results.json", again: bool = False,
    quiet: bool = False,
) -> None:  # fmt: skip
    """Run every evaluator and write its results as soon as it ends, so that a resumed run continues with the next one.

    Results of other evaluators are not changed. again: repeat completed evaluators. name: the file of the results.
    """
    run = RunEvaluation(parts, wd, params, step, name=name, log=(lambda text: None) if quiet else say)
    for key in parts.evaluators:
        if again or not run.done(key):
            started = time.monotonic()
            run.record(key, run.measure(key), time.monotonic() - started)


def evaluate_together(runs: Sequence["RunEvaluation"], devices: Sequence[Any]) -> list[Exception | None]:
    """Run every evaluator for runs that share a program, one evaluator after another; return the error of each run, if any.

    Each pass over the data and each fine-tuning serves all runs, over `devices` (see `features.join`). Each run's time is
    its share of the total.
    """
    from ssl_jax.downstream.evaluators.features import FAILURES, join

    for weights in runs[0].encoders:
        join([run.encoders[weights] for run in runs], devices)
    errors: list[Exception | None] = [None] * len(runs)
    for key in runs[0].parts.evaluators:
        left = [k for k, run in enumerate(runs) if errors[k] is None and not run.done(key)]
        started, found = time.monotonic(), {}
        for k in left:
            try:
                found[k] = runs[k].measure(key)
            except FAILURES as error:
                errors[k] = error
        for k, records in found.items():
            runs[k].record(key, records, (time.monotonic() - started) / len(left))
    return errors


class RunEvaluation:
    """The evaluators of one run at one checkpoint, and the files of their results."""

    def __init__(
        self, parts: Any, wd: Workdir, params: Params, step: int, *, name: str = "results.json",
        log: Callable[[str], None] = lambda text: None,
    ):  # fmt: skip
        from ssl_jax.training.checkpoint import load_params

        self.parts, self.wd, self.params, self.step, self.name, self.log = parts, wd, params, step, name, log
        self.file, self.sections = name.replace("results", "records", 1), evaluator_sections(parts.config)
        self.encoders = {}
        if not parts.evaluators:
            if name == "results.json":
                wd.write(self.file, {})
                wd.write(name, {})
                wd.write("status.json", {**wd.status(), "evaluated": {}})
            return
        cache = wd.path / "features" if parts.checkpoint.features else None
        self.encoders["ema"] = parts.evaluation.encoder(params, cache, f"step {step}")
        if any(evaluator.weights == "student" for evaluator in parts.evaluators.values()):
            _, student = load_params(wd.path / "checkpoints", step, average=False)
            self.encoders["student"] = parts.evaluation.encoder(student, cache, f"step {step} student")

    def mark(self, key: str) -> str:
        """Return the fingerprint of an evaluator's settings."""
        return fingerprint(self.sections.get(key, dataclasses.asdict(self.parts.evaluators[key])))

    def done(self, key: str) -> bool:
        """Return whether an evaluator's results are stored, measured with the same settings."""
        done = self.wd.status().get("evaluated", {})
        return done.get(key) == self.mark(key) and key in self.wd.read(self.file, {})

    def measure(self, key: str) -> list[Any]:
        """Return the records of an evaluator."""
        return self.parts.evaluation.measure(key, self.encoders, workdir=str(self.wd.path), log=self.log)

    def record(self, key: str, found: list[Any], seconds: float) -> None:
        """Write and print the results of an evaluator."""
        from ssl_jax.reports import records

        wd, evaluator = self.wd, self.parts.evaluators[key]
        stored = wd.read(self.file, {}) | {key: []} | records.to_json(found)
        stored |= records.to_json(skipped_examples(self.parts.evaluation.data))
        wd.write(self.file, stored)
        wd.write(self.name, records.flat(records.from_json(stored)))
        if self.name == "results.json":
            wd.write("timings.json", {**wd.read("timings.json", {}), key: seconds})
            wd.write("status.json", {**wd.status(), "evaluated": {**wd.status().get("evaluated", {}), key: self.mark(key)}})
        if found:
            note = evaluator.notes.get(self.parts.task.name)
            self.log(f"{found[0].name} {found[0].value:.4g}  ({seconds:.1f} s){f'; {note}' if note else ''}")


def skipped_examples(evaluation: Any) -> list[Any]:
    """Return the numbers of skipped examples of each split ("data/test/skipped"), if there are any."""
    from ssl_jax.reports.records import Record

    counts = {split: getattr(evaluation, split).skipped() for split in ("train", "test")}
    return [Record("skipped", float(n), setting=split, evaluator="data") for split, n in counts.items() if n]


def evaluate_during(parts: Any, state: Any) -> dict[str, float]:
    """Run the evaluators named in training.evaluators (default: all) during training.

    They use the test split, or, with checkpoint.best, the validation part of the training data.
    """
    from ssl_jax.reports.records import flat

    evaluation = parts.selection or parts.evaluation
    student = evaluation.encoder(state.params)
    encoders = {"ema": student if state.ema is None else evaluation.encoder(state.ema), "student": student}
    chosen = parts.training.evaluators or tuple(parts.evaluators)
    return flat(record for name in chosen for record in evaluation.measure(name, encoders))


def panel_batch(dataset: Any, count: int = PANEL_EXAMPLES) -> dict[str, Any]:
    """Return `count` evenly spaced examples under the evaluation transform, as a task's batch."""
    from ssl_jax.data.pipeline import eval_batches, subset

    index = np.linspace(0, dataset.size - 1, min(count, dataset.size)).astype(int)
    raw, _ = next(iter(eval_batches(subset(dataset, index), len(index))))
    places = {name: raw.pop(name) for name in ("position", "index")}
    return {**dataset.on_device(raw, None), **places}


def write_panels(parts: Any, wd: Workdir, params: Params, step: int) -> None:
    """Write the report's panels, from the checkpoint of `step`."""
    from ssl_jax.randomness import stream
    from ssl_jax.reports.panels import save_panels
    from ssl_jax.training.checkpoint import load_variables

    with contextlib.suppress(FileNotFoundError):
        dataset = parts.dataset("test", False) if _has_test(parts) else parts.dataset("train", False)
        context = Context(variables=load_variables(wd.path / "checkpoints", step))
        key = stream(parts.config.get("seed", 0), "panels")
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
    """Print the summary table: the headline metric and baselines of each evaluator."""
    from ssl_jax.reports.records import from_json
    from ssl_jax.reports.tables import short_table

    found = from_json(wd.read("records.json", {}))
    if found:
        say(short_table(found, {name: tuple(ends) for name, ends in (config.get("expected") or {}).items()}))
