"""Handle a non-finite loss or gradient: stop with a report, or go back to a checkpoint and skip the bad batches."""

import pathlib
from typing import Any

import jax
import numpy as np

from ssl_jax import config as configs
from ssl_jax import randomness
from ssl_jax.training import sharding
from ssl_jax.training.checkpoint import Checkpoints, warn
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.index_ranges import index_limits, out_of_range
from ssl_jax.training.state import State

MAX_REWINDS = 10
ADVICE = 'continue with training.on_nonfinite="skip", or lower optimizer.lr or set optimizer.clip in another --workdir'


class Rewind(Exception):
    """The run goes back to the last checkpoint before `step`."""

    def __init__(self, step: int):
        self.step = step


def stop_or_rewind(run: Any, step: int, metric: str, group: str, *, rewinds: int | None) -> None:
    """Raise Diverged, or Rewind if `rewinds` (None: not allowed) is below MAX_REWINDS. Write diverged.json.

    run: the loop's Run. metric, group: the first metric and parameter group that are not finite after `step`.
    """
    checkpoints, number = run.checkpoints, step - 1 + int(run.state.hyper["data_offset"])
    if checkpoints:
        checkpoints.wait()
    good = max((s for s in checkpoints.steps() if s < step), default=None) if checkpoints else None
    line = report(step, metric, group, number, run.stream, run.workdir, good)
    if rewinds is not None and checkpoints and rewinds < MAX_REWINDS:
        warn(f"{line}; going back to a checkpoint and skipping these batches")
        raise Rewind(step)
    raise Diverged(f"{line}; {diagnose(run, number) or ADVICE}")


def diagnose(run: Any, number: int) -> str | None:
    """Return a line that names an index (token, type, label) of batch `number` outside its table, the likely cause; or None."""
    task, stream = run.program.task, run.stream
    if jax.process_count() > 1 or not index_limits(task):
        return None
    key = randomness.stream(int(run.state.hyper["seed"]), "augment", number)
    return out_of_range(task, jax.device_get(stream.on_device(run.resident, stream.host_batch(number), key)))


def report(
    step: int, metric: str, group: str, batch: int, stream: Any, workdir: pathlib.Path | None, good: int | None = None
) -> str:
    """Write diverged.json, and return its content as a line. batch: the bad batch; good: the last checkpoint before it."""
    index = [int(i) for i in stream.indices(batch)]
    shown = ", ".join(map(str, index[:8])) + (f" ... ({len(index)} in all)" if len(index) > 8 else "")
    saved = "none" if good is None else f"step {good}"
    where = f"nor is the gradient of {group}" if group else "all gradients are finite"
    line = f"step {step}: {metric} is not finite, {where}; last good checkpoint: {saved}; the batch holds the examples {shown}"
    if workdir is not None and jax.process_index() == 0:
        found = {"step": step, "metric": metric, "group": group, "checkpoint": good, "batch": batch, "indices": index}
        (workdir / "diverged.json").write_text(configs.to_json(found) + "\n")
    return line


def rewound(bad: Rewind, checkpoints: Checkpoints, abstract: State, mesh: Any, rewinds: int) -> tuple[int, State, dict]:
    """Return (step, State, extra) of the last checkpoint before the bad step; the batches since then are skipped."""
    checkpoints.wait()
    good = max(s for s in checkpoints.steps() if s < bad.step)
    state, extra = checkpoints.restore(good, abstract)
    extra["rewinds"] = max(rewinds + 1, extra.get("rewinds", 0) + 1)
    checkpoints.saved = good
    offset = np.int32(int(state.hyper["data_offset"]) + bad.step - good)
    return good, state.replace(hyper={**state.hyper, "data_offset": sharding.put_replicated(offset, mesh)}), extra
