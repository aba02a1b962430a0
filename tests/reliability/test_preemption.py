"""SIGTERM and SIGINT in every phase: a checkpoint of the last completed step, the exit status, and the time it takes."""

import signal
import time

import pytest

from ssl_jax.training.checkpoint import complete_steps, damage, read_extra
from tests.reliability.processes import assert_same_run, finish, toy

pytestmark = pytest.mark.chaos
GRACE = 20.0


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("twin") / "run"
    finish(toy(workdir))
    return workdir


def stopped(child, number=signal.SIGTERM, limit=GRACE):
    """Signal the child; its exit status and the seconds it took."""
    started = time.monotonic()
    child.process.send_signal(number)
    status = child.end()
    seconds = time.monotonic() - started
    assert seconds < limit, f"{seconds:.1f} s of a grace of {GRACE}"
    return status


def newest(workdir):
    step = complete_steps(workdir / "checkpoints")[-1]
    assert damage(workdir / "checkpoints" / f"{step:08d}") is None
    return step


def test_before_the_first_compilation(tmp_path, twin):
    child = toy(tmp_path, slow_create=2.0)
    child.wait_for("PHASE create")
    assert stopped(child) == 143
    assert newest(tmp_path) == 0
    finish(toy(tmp_path))
    assert_same_run(tmp_path, twin)


def test_during_the_first_compilation(tmp_path):
    """XLA holds the main thread for many seconds; the run ends long before it is through."""
    child = toy(tmp_path, unroll=600, environment={"SSL_JAX_CACHE": "off"})
    child.wait_for("PHASE compile")
    time.sleep(4)
    assert stopped(child) == 143
    assert newest(tmp_path) == 0 and "PHASE step" not in child.output


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_in_a_step(tmp_path, twin, number, status):
    child = toy(tmp_path, slow_step=0.4)
    child.wait_for("PHASE step", 4)
    assert stopped(child, number) == status
    assert newest(tmp_path) == child.output.count("PHASE step"), "the step that was under way is not lost"
    finish(toy(tmp_path))
    assert_same_run(tmp_path, twin)


def test_in_an_evaluation(tmp_path, twin):
    """The evaluation is not waited for, and is done again."""
    child = toy(tmp_path, slow_evaluation=60.0)
    child.wait_for("PHASE evaluate")
    assert stopped(child) == 143
    assert newest(tmp_path) == 8 and "evaluated" not in read_extra(tmp_path / "checkpoints", 8)
    finish(toy(tmp_path))
    assert_same_run(tmp_path, twin)


def test_in_a_save(tmp_path, twin):
    child = toy(tmp_path, slow_save=1.5, slow_step=0.1)
    child.wait_for("PHASE save")
    assert stopped(child) == 143
    assert newest(tmp_path) >= 6
    finish(toy(tmp_path))
    assert_same_run(tmp_path, twin)


def test_a_second_signal_ends_at_once_and_harms_nothing(tmp_path, twin):
    child = toy(tmp_path, slow_save=8.0)
    child.wait_for("PHASE save", 2)
    child.process.send_signal(signal.SIGTERM)
    time.sleep(1.0)
    assert stopped(child, limit=3.0) == 143
    assert newest(tmp_path) == 6
    child = finish(toy(tmp_path))
    assert "was being written when the run stopped" in child.output
    assert_same_run(tmp_path, twin)


def test_the_grace_period_is_kept_even_when_a_step_is_longer(tmp_path, twin):
    child = toy(tmp_path, slow_step=60.0, grace=3.0)
    child.wait_for("PHASE step")
    assert stopped(child, limit=4.0) == 143
