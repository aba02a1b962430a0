"""metrics.jsonl survives a kill at any byte; a line is the mean of its interval; one owner a work directory."""

import json
import os
import socket
import sys

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training.lock import locked
from ssl_jax.training.logging import Console, Logger, MetricsFile, Speed, _tensorboard, duration
from ssl_jax.training.settings import TrainingSettings
from tests.reliability.toys import ToyTask, toy_stream


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_kill_at_any_byte_leaves_a_repairable_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = MetricsFile(path, 0)
    for step in range(1, 6):
        whole.write({"step": step, "loss": step / 3})
    whole.close()
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        complete = content[:cut].count(b"\n")
        file = MetricsFile(path, 5)
        for step in range(complete + 1, 6):
            file.write({"step": step, "loss": step / 3})
        file.close()
        assert path.read_bytes() == content, f"cut at byte {cut}"


def test_lines_beyond_the_restored_step_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in range(10)))
    MetricsFile(path, 6).close()
    assert [line["step"] for line in lines(path)] == list(range(7))


def test_noise_behind_the_last_line_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\x00\x00\xff{"step": 2}\n')
    MetricsFile(path, 9).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def logger(tmp_path, step=0, state=None, every=4, total=99, **options):
    training = TrainingSettings(log_every=every, tensorboard=False)
    speed = Speed(ToyTask(), toy_stream(8), "float32")
    console = Console(total, quiet=True)
    return Logger(tmp_path, training, step=step, total=total, speed=speed, state=state, console=console, **options)


def test_trouble_is_named_once_whatever_cuts_the_run(tmp_path, capsys):
    """The task judges the means of a line; its first answer is printed, even by a quiet run, and no second one."""
    low = lambda metrics: f"loss={metrics['loss']:g} is low" if metrics["loss"] < 3 else None
    first = logger(tmp_path, trouble=low)
    for step in range(1, 9):
        first.add(step, {"loss": 8.0 - step})  # means of four: 5.5, 1.5
    state = json.loads(json.dumps(first.state()))
    first.close()
    second = logger(tmp_path, 8, state, trouble=low)
    for step in range(9, 17):
        second.add(step, {"loss": 0.0})
    second.close()
    assert capsys.readouterr().err == "ssl-jax: step 8: loss=1.5 is low\n"


def test_a_line_is_the_mean_over_its_interval_wherever_the_run_was_cut(tmp_path):
    values = np.random.default_rng(0).normal(size=9)
    for cut in range(9):
        folder = tmp_path / str(cut)
        folder.mkdir()
        first = logger(folder)
        for step in range(1, cut + 1):
            first.add(step, {"loss": values[step - 1], "lr": float(step)})
            first.flush_line()
        state = json.loads(json.dumps(first.state()))
        first.close()
        second = logger(folder, cut, state)
        for step in range(cut + 1, 10):
            second.add(step, {"loss": values[step - 1], "lr": float(step)})
            second.flush_line()
        second.close()
        got = lines(folder / "metrics.jsonl")
        assert [line["step"] for line in got] == [4, 8]
        assert got[0]["loss"] == pytest.approx(values[:4].mean(), rel=1e-12)
        assert got[1]["lr"] == 8.0, "of the learning rate, the last value"
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "0/metrics.jsonl").read_bytes()


def test_a_run_shorter_than_its_interval_leaves_a_line(tmp_path):
    log = logger(tmp_path, total=3)
    for step in (1, 2, 3):
        log.add(step, {"loss": float(step)})
        log.flush_line()
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 3, "loss": 2.0}]


def test_an_evaluation_joins_its_steps_line(tmp_path):
    log = logger(tmp_path, every=2)
    log.add(1, {"loss": 1.0})
    log.add(2, {"loss": 3.0})  # its line waits
    log.flush_line({"accuracy": 0.5}, 2)
    log.add(3, {"loss": 1.0})
    log.flush_line({"accuracy": 0.6}, 3)
    log.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 2, "loss": 2.0, "accuracy": 0.5}, {"step": 3, "accuracy": 0.6},
    ]  # fmt: skip


def test_numbers_that_are_not_finite_are_valid_json(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write({"step": 1, "loss": float("nan"), "norm": float("inf")})
    file.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
        "step": 1,
        "loss": "nan",
        "norm": "inf",
    }


def test_without_a_terminal_there_is_one_plain_line_and_no_flood(capsys):
    console = Console(total=1000)
    speed = {"examples/s": 1234.0, "steps/s": 10.0, "data_wait": 0.01}
    for step in range(1, 500):
        if console.due():
            console.show(step, {"loss": 0.5}, speed)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and "loss 0.5" in shown[0] and "1,234 examples/s" in shown[0] and "ETA 1:40" in shown[0]


def test_durations_are_readable():
    assert [duration(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_one_owner_a_work_directory(tmp_path, child):
    """A second process is told who the owner is; a dead owner's lock is gone."""
    code = f"""
import os
from ssl_jax.training.lock import locked
from ssl_jax.errors import UserError
try:
    with locked({str(tmp_path)!r}):
        print("got it")
        os._exit(0)
except UserError as error:
    print(error)
"""
    with locked(tmp_path):
        with locked(tmp_path):  # again, in the same process
            pass
        assert f"in use by pid {os.getpid()} on {socket.gethostname()}" in child(code)
    assert "got it" in child(code)
    assert "got it" in child(code)


def test_a_work_directory_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "x"):
        pass


def test_the_tensorboard_writer_does_not_import_torch(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    writer = _tensorboard(tmp_path, 0)
    writer.add_scalar("loss", 1.0, 1)
    writer.close()
    assert "torch" not in sys.modules
    assert list((tmp_path / "tensorboard").iterdir())
