"""Signals to the process group and readers that die, through the installed command: the state is saved, nothing is left."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ssl_jax.signals import SHUTDOWN
from ssl_jax.training.checkpoint import complete_steps, damage
from ssl_jax.training.preemption import Preemption
from tests.reliability.processes import COMMAND, ROOT

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict(dict(seed=0, optimizer=dict(lr=1e-4)))
    c.training = dict(duration="100_000 steps", log_every=1, tensorboard=False)
    c.data = dict(train="folder:{0}/images", batch_size=4, image_size=8, channels=1, normalize="half", workers=2)
    c.task = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))
    c.model = dict(name="vit", patch_size=4, width=8, depth=1, heads=2)
    return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    (folder / "images").mkdir()
    for i in range(16):
        Image.fromarray(np.full((8, 8), 15 * i, np.uint8)).save(folder / f"images/{i}.png")
    (folder / "config.py").write_text(CONFIG.format(folder))
    return folder


class Running:
    """A run in a session of its own, as a terminal starts it, once it has trained a few steps."""

    def __init__(self, folder: pathlib.Path, workdir: pathlib.Path):
        self.workdir = workdir
        flags = "--xla_backend_optimization_level=0"
        variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": flags,
                     "SSL_JAX_CACHE": str(ROOT / ".pytest_cache/compiled")}  # fmt: skip
        command = [COMMAND, "pretrain", f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
        self.errors = open(folder / f"{workdir.name}.err", "w+")
        self.process = subprocess.Popen(
            command, env=variables, stdout=subprocess.DEVNULL, stderr=self.errors, start_new_session=True
        )
        deadline = time.monotonic() + 200
        while self.steps() < 3:
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def steps(self) -> int:
        file = self.workdir / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def end(self) -> int:
        return self.process.wait(60)

    @property
    def output(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def session(self) -> dict[int, str]:
        """The processes of the run's session by id: their command lines."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, IndexError, ValueError):
                continue
        return found

    def readers(self) -> list[int]:
        return [pid for pid, command in self.session().items() if "spawn_main" in command]

    def is_gone(self, seconds: float = 10.0) -> bool:
        """Whether no process of the session is left after a while."""
        deadline = time.monotonic() + seconds
        while self.session() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.session()


@pytest.fixture
def running(folder, tmp_path):
    run = Running(folder, tmp_path / "run")
    yield run
    for pid in run.session():
        os.kill(pid, signal.SIGKILL)


def assert_saved(run: Running, logged: int) -> None:
    newest = complete_steps(run.workdir / "checkpoints")[-1]
    assert newest >= logged and damage(run.workdir / "checkpoints" / f"{newest:08d}") is None
    assert "Traceback" not in run.output and run.output.count("ssl-jax:") <= 2, run.output


@pytest.mark.chaos
@pytest.mark.parametrize(
    "numbers",
    [[signal.SIGINT], [signal.SIGHUP, signal.SIGHUP], [signal.SIGUSR1], [signal.SIGTERM, signal.SIGHUP]],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)
def test_a_signal_to_the_process_group_saves_the_state(running, numbers):
    """Ctrl-C, scancel, a closed terminal (the kernel and the shell both send SIGHUP), SLURM's --signal, systemd."""
    assert len(running.readers()) == 2
    logged = running.steps()
    for number in numbers:
        os.killpg(running.process.pid, number)
    assert running.end() == 128 + numbers[0]
    assert_saved(running, logged)
    assert running.is_gone()


@pytest.mark.chaos
def test_a_killed_reader_ends_the_run_in_one_line_with_its_state_saved(running):
    logged = running.steps()
    os.kill(running.readers()[0], signal.SIGKILL)  # as the kernel does when memory runs out
    assert running.end() == 1 and running.output.count("ssl-jax:") == 1
    assert_saved(running, logged)
    assert "a reader process died (SIGKILL)" in running.output and running.is_gone()


@pytest.mark.chaos
def test_a_signal_saves_the_state_while_readers_hang(running):
    """As they do on a network file system that stalls."""
    for pid in running.readers():
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3)  # until what was read ahead is used up
    logged = running.steps()
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 143
    assert_saved(running, logged)
    assert "the grace period is over" not in running.output


@pytest.mark.chaos
def test_readers_end_with_a_killed_run(running):
    assert len(running.readers()) == 2
    running.process.kill()
    running.end()
    assert running.is_gone()


def test_signals_that_were_ignored_stay_ignored():
    """nohup and a shell's background jobs start a process so."""
    before = {number: signal.getsignal(number) for number in SHUTDOWN}
    try:
        for number in SHUTDOWN:  # whatever the shell that started the tests has set
            signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
        with Preemption() as context:
            assert context.enabled and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            others = set(SHUTDOWN) - {signal.SIGHUP}
            assert all(signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL) for number in others)
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in others)
    finally:
        for number in SHUTDOWN:
            signal.signal(number, before[number])


SCRIPT = """
print("STARTED", flush=True)
from ssl_jax import data
from ssl_jax.data.pipeline import Stream
section = dict(train="folder:{0}/images", batch_size=4, image_size=8, channels=1, normalize="half", workers=1)
print(next(Stream(data.build("images", section), batch_size=4, seed=0).iterate(0))["image"].shape, flush=True)
"""


@pytest.mark.chaos
def test_readers_do_not_run_the_script_again_that_started_them(folder):
    """multiprocessing would, for a script without `if __name__ == "__main__"`, and a second run would begin in each."""
    (folder / "script.py").write_text(SCRIPT.format(folder))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0 and done.stdout.split("\n")[:2] == ["STARTED", "(4, 8, 8, 1)"], done.stderr
