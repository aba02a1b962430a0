"""Runs as child processes, and what they leave behind."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np

from ssl_jax.training.checkpoint import complete_steps, read_arrays

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = pathlib.Path(sys.executable).with_name("ssl-jax")  # as installed


class Child:
    """A process whose output lines are read as they come."""

    def __init__(self, command: list[str], *, devices: int = 1, **environment: str):
        # unoptimized code compiles in half the time, and is as exact
        flags = "--xla_backend_optimization_level=0"
        variables = {"SSL_JAX_CACHE": str(ROOT / ".pytest_cache/compiled"), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        variables = {**os.environ, **variables, "XLA_FLAGS": flags, "JAX_NUM_CPU_DEVICES": str(devices), **environment}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: list[str] = []
        self.ended = False  # its output is read to the end
        self._condition = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._condition:
                self.lines.append(line.rstrip("\n"))
                self._condition.notify_all()
        with self._condition:
            self.ended = True
            self._condition.notify_all()

    def wait_for(self, text: str, count: int = 1, timeout: float = 300, *, or_the_end: bool = False) -> None:
        """Until `text` has come `count` times; fails when the process ends before, unless that is as good."""
        seen = lambda: sum(text in line for line in self.lines) >= count
        with self._condition:
            self._condition.wait_for(lambda: seen() or self.ended, timeout)
            assert seen() or (or_the_end and self.ended), f"no {count} x {text!r} in:\n" + self.output

    def end(self, timeout: float = 300) -> int:
        """The exit status."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("the run hangs:\n" + "\n".join(self.lines[-30:])) from None
        self._reader.join(10)
        return status

    @property
    def output(self) -> str:
        return "\n".join(self.lines)


def toy(workdir: pathlib.Path, devices: int = 1, environment: dict | None = None, **options) -> Child:
    words = [f"{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.reliability.run_toy", str(workdir), *words]
    return Child(command, devices=devices, **(environment or {}))


def finish(child: Child) -> Child:
    assert child.end() == 0, child.output
    return child


def arrays(workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, by name."""
    steps = complete_steps(workdir / "checkpoints")
    return read_arrays((workdir / "checkpoints" / f"{steps[-1] if step is None else step:08d}").absolute())


def assert_same_run(a: pathlib.Path, b: pathlib.Path) -> None:
    """Parameters, optimizer state, moving average, metrics and the evaluators' results, bit for bit."""
    ends = [complete_steps(run / "checkpoints")[-1] for run in (a, b)]
    assert ends[0] == ends[1], f"ended at {ends}"
    left, right = arrays(a), arrays(b)
    assert sorted(left) == sorted(right) and len(left) > 5, f"{set(left) ^ set(right)}"
    for name in left:
        assert np.asarray(left[name]).tobytes() == np.asarray(right[name]).tobytes(), f"{name} differs"
    lines = (a / "metrics.jsonl").read_text()
    assert lines == (b / "metrics.jsonl").read_text(), "metrics.jsonl differs"
    steps = [json.loads(line)["step"] for line in lines.splitlines()]
    assert steps == sorted(set(steps)), "a step is missing its turn or is there twice"
    left, right = [file.read_text() if file.exists() else None for file in (a / "results.json", b / "results.json")]
    assert left == right, "results.json differs"
