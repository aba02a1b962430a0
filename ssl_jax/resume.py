"""Resuming a run: which settings may change, why the others may not, and what is already done."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.workdir import Workdir, differences

# Settings that may change when a run is resumed, since they do not affect its training so far. A run without a
# non-finite loss is the same under every `on_nonfinite`.
MAY_CHANGE = (
    "mesh", "checkpoint", "downstream", "expected", "data.workers", "data.dir", "data.placement", "data.cache",
    "training.accumulation", "training.steps_per_call", "training.log_every", "training.evaluate_every", "training.evaluators",
    "training.on_nonfinite", "training.tensorboard", "training.wandb", "training.patience",
)  # fmt: skip
REASONS = {  # why other settings may not change, by the prefix of their key
    "seed": "the steps already taken drew their random numbers from it",
    "data.test": "`ssl-jax evaluate --data.test=` measures a run on other data",
    "data": "the steps already taken read other batches",
    "model": "the saved parameters belong to it",
    "task": "the saved parameters were trained by it",
    "": "the steps already taken used it",
}


def check_directory(wd: Workdir, config: ConfigDict) -> None:
    """Raise UserError, with the difference and the reason, if the directory's run cannot be resumed under `config`.

    A run without saved progress starts from the beginning, under any config.
    """
    wd.check_writable()
    old = wd.config()
    if old is None or not has_progress(wd):
        return
    differ = differences(old.to_dict(), wd.as_recorded(config).to_dict())
    refused = [(key, line, why) for key, line in differ if (why := why_not(key, old, config)) is not None]
    if refused:
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        shown = "; ".join(line for _, line, _ in refused[:3]) + more
        why = refused[0][2]
        raise UserError(f"--workdir={wd.path}: belongs to a run of another config ({shown}); {why}; use another --workdir")


def why_not(key: str, old: ConfigDict, new: ConfigDict) -> str | None:
    """Return why the setting `key` may not change when a run is resumed; None if it may."""
    if key == "training.duration":
        from ssl_jax.training.length import EXTENDABLE

        schedule = new.optimizer.get("schedule") or "warmup_cosine"
        if schedule in EXTENDABLE and not new.get("schedules"):
            return None
        return f"optimizer.schedule={schedule!r} spreads over the whole run: another length would have changed every step"
    if key == "checkpoint.best" and (old.get("checkpoint") or {}).get("best") != (new.get("checkpoint") or {}).get("best"):
        if None in ((old.get("checkpoint") or {}).get("best"), (new.get("checkpoint") or {}).get("best")):
            return "with it a part of the training data is held out, to select on"
    if any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE):
        return None
    return next(why for start, why in REASONS.items() if key == start or key.startswith(f"{start}.") or not start)


def has_progress(wd: Workdir) -> bool:
    """Return whether the directory's run has saved progress: a checkpoint, or the record that it was trained."""
    from ssl_jax.training.checkpoint import complete_steps

    return "trained" in wd.status() or bool(complete_steps(wd.path / "checkpoints"))


def begin_anew(wd: Workdir, config: ConfigDict) -> None:
    """Remove the records of an earlier start under another config that saved no progress."""
    old = wd.config()
    if old is not None and not has_progress(wd) and differences(old.to_dict(), wd.as_recorded(config).to_dict()):
        wd.forget()


def trained(wd: Workdir, config: ConfigDict | None = None) -> bool:
    """Return whether training is complete and its last checkpoint undamaged; otherwise the missing steps are repeated."""
    from ssl_jax.training.checkpoint import damage

    step = wd.status().get("trained")
    if step is None or (config is not None and extended(wd, config)):
        return False
    return damage(wd.path / "checkpoints" / f"{step:08d}") is None


def extended(wd: Workdir, config: ConfigDict) -> bool:
    """Return whether a completed run must be trained further because `config` gives it another length."""
    status, duration = wd.status(), config.training.get("duration")
    return "trained" in status and status.get("duration", duration) != duration


def best_checkpoint(wd: Workdir, checkpoint: Any) -> int | None:
    """Return the step that the run selected (checkpoint.best), if its checkpoint exists; else None."""
    from ssl_jax.training.checkpoint import complete_steps, damage

    if checkpoint.best is None:
        return None
    selection, directory = stored_selection(wd), wd.path / "checkpoints"
    step = selection.get("step") if selection.get("metric") == checkpoint.best else None
    return step if step in complete_steps(directory) and damage(directory / f"{step:08d}") is None else None


def stored_selection(wd: Workdir) -> dict[str, Any]:
    """Return the state of the best checkpoint's selection from the newest checkpoint: metric, mode, value, step."""
    from ssl_jax.training.checkpoint import complete_steps, read_extra

    steps = complete_steps(wd.path / "checkpoints")
    return read_extra(wd.path / "checkpoints", steps[-1]).get("selection") or {} if steps else {}


def set_results_aside(wd: Workdir) -> None:
    """Rename the results of a completed run that is trained further to results_STEP.json and records_STEP.json."""
    status = wd.status()
    step = status.pop("trained")
    for name in ("results", "records"):
        file = wd.path / f"{name}.json"
        if file.is_file():
            file.rename(wd.path / f"{name}_{step:08d}.json")
    wd.write("status.json", {key: value for key, value in status.items() if key not in ("evaluated", "duration")})


def finished(wd: Workdir, config: ConfigDict, evaluate: bool) -> bool:
    """Return whether a run of this config is complete."""
    done = measured(wd, config) and (wd.path / "report.html").is_file() if evaluate else "trained" in wd.status()
    return done and not extended(wd, config)


def measured(wd: Workdir, config: ConfigDict) -> bool:
    """Return whether the run is trained and has been evaluated by all evaluators of `config`."""
    wanted = {name: fingerprint(section) for name, section in evaluator_sections(config).items()}
    status = wd.status()
    return "trained" in status and "evaluated" in status and wanted.items() <= status["evaluated"].items()


def evaluator_sections(config: ConfigDict) -> dict[str, Any]:
    """Return the sections of config.downstream by name, without those that None or False switches off."""
    section = config.get("downstream") or {}
    if not isinstance(section, Mapping | ConfigDict):
        raise UserError(f"downstream={section!r}: expected evaluators by name, such as dict(knn=dict())")
    return {name: settings for name, settings in section.items() if settings is not None and settings is not False}


def fingerprint(section: Any) -> str:
    """Return an evaluator's settings as text that changes with any of them."""
    return configs.to_json(section)
