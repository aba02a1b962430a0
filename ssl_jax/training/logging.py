"""A run's log: metrics.jsonl, TensorBoard, Weights & Biases, and one line on the console.

metrics.jsonl holds computed metrics and no times, so that a killed and resumed run has the same file, byte for byte;
speed.jsonl holds the speed.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from ssl_jax import devices
from ssl_jax.errors import UserError
from ssl_jax.task import Task, tokens_of
from ssl_jax.training.settings import TrainingSettings


class MetricsFile:
    """JSON lines that survive a kill at any byte: each is written at once, and a partial last line is removed on opening."""

    def __init__(self, path: pathlib.Path, step: int):
        """Open for appending after `step`; remove later lines, whose steps are repeated."""
        self.path = path
        whole = [text for number, text in read_lines(path) if number <= step] if path.exists() else []
        content = "".join(whole).encode()
        if path.exists() and path.read_bytes() != content:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: Mapping[str, Any]) -> None:
        data = (json.dumps({k: _plain(v) for k, v in line.items()}) + "\n").encode()
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room and start again") from None

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """Return (step, text with its newline) of every complete line, up to the first incomplete or invalid one."""
    lines = []
    for text in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            lines.append((int(json.loads(text)["step"]), text))
        except (ValueError, KeyError, TypeError):
            break
        if not text.endswith("\n"):
            lines.pop()
            break
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, int | str | bool):
        return value
    value = float(value)
    return value if value - value == 0 else str(value)  # JSON has no NaN


class Speed:
    """Throughput since the last report: examples (or tokens) and steps per second, and the share of time spent waiting."""

    def __init__(self, task: Task, stream: Any, dtype: str):
        self.batch_size, self.tokens, self.flops, self.dtype = (
            stream.batch_size,
            tokens_of(stream.dataset.info),
            task.flops(),
            dtype,
        )
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self.started, self.steps = time.monotonic(), 0
        self.waited = 0.0  # seconds waited for data
        self.paused = 0.0  # seconds of evaluating and compiling

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of a block from the measurement."""
        started = time.monotonic()
        yield
        self.paused += time.monotonic() - started

    def report(self) -> dict[str, float]:
        """Return the throughput since the last report: examples or tokens per second, share of time waiting for data, MFU."""
        elapsed = max(time.monotonic() - self.started - self.paused, 1e-9)
        rate = self.steps * self.batch_size / elapsed
        unit = "tokens/s" if self.tokens > 1 else "examples/s"
        values = {unit: rate * self.tokens, "steps/s": self.steps / elapsed, "data_wait": self.waited / elapsed}
        if self.flops and jax.default_backend() != "cpu":  # measuring a CPU's peak would disturb the training
            mfu = devices.utilisation(rate * self.flops, self.dtype)
            values |= {} if mfu is None else {"mfu": mfu}
        self.restart()
        return values


class Console:
    """One live line on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, total: int, name: str = "train", seconds: float = 10.0, quiet: bool = False):
        self.total, self.name, self.seconds = total, name, seconds
        self.quiet = quiet or jax.process_index() != 0
        self.live, self._last, self._progress = sys.stderr.isatty() and not self.quiet, 0.0, None
        if self.live:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn(name), BarColumn(), TextColumn("{task.completed}/{task.total} {task.fields[text]} ETA"))
            self._progress = Progress(*columns, TimeRemainingColumn(), transient=False)
            self._task = self._progress.add_task(name, total=total, text="")
            self._progress.start()
            self.seconds = 0.5

    def due(self) -> bool:
        return not self.quiet and time.monotonic() - self._last >= self.seconds

    def show(self, step: int, metrics: Mapping[str, float], speed: Mapping[str, float]) -> None:
        self._last = time.monotonic()
        if self.quiet:
            return
        text = f"loss {metrics.get('loss', float('nan')):.4g}"
        for name, value in speed.items():
            if name.endswith("/s") and name != "steps/s":
                text += f"  {value:,.0f} {name}"
        if "mfu" in speed:
            text += f"  MFU {speed['mfu']:.1%}"
        text += f"  data wait {speed.get('data_wait', 0):.1%}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, text=text)
            return
        left = (self.total - step) / max(speed.get("steps/s", 0), 1e-9)
        text += f"  ETA {duration(left)}" if speed.get("steps/s") else ""
        print(f"{self.name} {step}/{self.total}  {text}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a separate line, even if the run is quiet."""
        if jax.process_index() != 0:
            return
        if self._progress is not None:
            self._progress.console.print(f"ssl-jax: {line}", markup=False, highlight=False)
        else:
            print(f"ssl-jax: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Logger:
    """Log one run to all of the above; without a work directory only to the console.

    Keeps the sums of the metrics since the last line; they are part of a checkpoint (`state`), so that a line whose
    interval spans a restart is the same.
    """

    def __init__(
        self,
        workdir: pathlib.Path | None,
        training: TrainingSettings,
        *,
        step: int,
        total: int,
        speed: Speed,
        state: Mapping[str, Any] | None = None,
        console: Console,
        trouble: Callable[[Mapping[str, float]], str | None] = lambda metrics: None,
    ):
        """trouble: `Task.trouble`; its first message is printed."""
        self.trouble, self.troubled = trouble, bool(state and state.get("troubled"))
        self.every, self.total, self.speed, self.step = training.log_every, total, speed, step
        state = state or {}
        self.sums = {name: list(pair) for name, pair in state.get("sums", {}).items()}  # [sum, number of terms]
        self.line = dict(state["line"]) if state.get("line") else None  # complete, but waiting for its evaluation
        self.last: dict[str, float] = {}
        self.console = console
        self.metrics = self.speeds = self._board = self._wandb = None
        if workdir is not None and jax.process_index() == 0:
            self.metrics = MetricsFile(workdir / "metrics.jsonl", step)
            self.speeds = MetricsFile(workdir / "speed.jsonl", step)
            self._board = _tensorboard(workdir, step) if training.tensorboard else None
            self._wandb = _wandb(workdir, training.wandb) if training.wandb else None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, copied because it is written while the run continues."""
        sums = {name: list(pair) for name, pair in self.sums.items()}
        return {"sums": sums, "line": self.line and dict(self.line), "troubled": self.troubled}

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add the metrics of one step; every `every` steps and at the end, complete a line of means since the previous line."""
        self.last = dict(values)
        self.step = step
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = [total + float(value), count + 1]
        if step % self.every == 0 or step == self.total:
            self.flush_line()
            means = {name: total / count for name, (total, count) in self.sums.items()}
            self.line = {"step": step, **{n: float(values[n]) if n in LAST and n in values else v for n, v in means.items()}}
            self.sums = {}
            said = None if self.troubled else self.trouble(means)
            if said:
                self.troubled = True
                self.console.say(f"step {step}: {said}")

    def flush_line(self, extra: Mapping[str, float] | None = None, step: int | None = None) -> None:
        """Write the waiting line, with an evaluation's results."""
        line, self.line = self.line, None
        if extra:
            line = {**(line or {"step": step}), **extra}
        if line is None:
            return
        if self.metrics is not None:
            self.metrics.write(line)
        numbers = {k: v for k, v in line.items() if k != "step" and isinstance(v, int | float)}
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, line["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=line["step"])

    def report(self) -> None:
        """Show the console's line when it is due, and after the last step."""
        ends = self.step == self.total and not self.console.quiet
        if self.last and (ends or self.console.due()):
            speed = self.speed.report()
            self.console.show(self.step, self.last, speed)
            if self.speeds is not None:
                self.speeds.write({"step": self.step, **speed})

    def sync(self) -> None:
        """Flush the files to disk, before a checkpoint that relies on them."""
        if self.metrics is not None:
            self.metrics.sync()

    def close(self) -> None:
        for part in (self.metrics, self.speeds, self._board, self.console):
            if part is not None:
                part.close()
        if self._wandb is not None:
            self._wandb.finish()


LAST = ("lr", "skipped", "rewinds")  # logged by their last value instead of the mean


def _tensorboard(workdir: pathlib.Path, step: int) -> Any:
    torch = sys.modules.setdefault("torch", None)  # tensorboardX would import torch without using it: 1.7 s
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    finally:
        if torch is None:
            del sys.modules["torch"]
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None, max_queue=1000)


def _wandb(workdir: pathlib.Path, project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError("training.wandb: wandb is not installed; pip install wandb, or do not set it") from None
    return wandb.init(project=project, dir=str(workdir), name=workdir.name, resume="allow", id=workdir.absolute().name)
