"""A checkpoint continues on another number of devices, another mesh, other processes, another accumulation.

The global batches and their order are the same, so the curves are equal to the rounding of f32 sums.
"""

import json
import signal
import socket

import numpy as np
import pytest

from ssl_jax.training.checkpoint import complete_steps
from tests.reliability.processes import arrays, finish, toy

pytestmark = pytest.mark.chaos


def curve(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(workdir, twin):
    got, want = curve(workdir), curve(twin)
    assert [line["step"] for line in got] == [line["step"] for line in want]
    for a, b in zip(got, want, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, err_msg=f"{name} at step {a['step']}")
    left, right = arrays(workdir), arrays(twin)
    assert sorted(left) == sorted(right)
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=2e-4, atol=2e-5, err_msg=name)


def cut(child):
    assert child.end() == 9, child.output


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("twin") / "run"
    finish(toy(workdir))
    return workdir


def test_one_device_then_eight_then_two(tmp_path, twin):
    cut(toy(tmp_path, die_at=9))
    assert complete_steps(tmp_path / "checkpoints") in ([], [6]), "the save of step 6 may still be under way"
    cut(toy(tmp_path, devices=8, data=2, fsdp=2, tensor=2, die_at=20))
    assert complete_steps(tmp_path / "checkpoints")[-1] >= 12
    finish(toy(tmp_path, devices=2, accumulation=2))
    assert_same_curve(tmp_path, twin)


@pytest.mark.parametrize("mesh", [dict(data=8), dict(fsdp=8), dict(data=2, fsdp=4), dict(fsdp=2, tensor=4)])
def test_every_mesh_learns_the_same(tmp_path, twin, mesh):
    finish(toy(tmp_path, devices=8, **mesh))
    assert_same_curve(tmp_path, twin)


def two_processes(workdir, **options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        toy(
            workdir, devices=2,
            environment={"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(rank)}, **options,
        )
        for rank in range(2)
    ]  # fmt: skip


def test_one_process_then_two(tmp_path, twin):
    cut(toy(tmp_path, die_at=9))
    for child in two_processes(tmp_path, fsdp=2):
        finish(child)
    assert_same_curve(tmp_path, twin)


def test_two_processes_agree_on_the_step_when_one_is_told_to_stop(tmp_path, twin):
    children = two_processes(tmp_path, fsdp=2, slow_step=0.3)
    children[1].wait_for("PHASE step", 5)
    children[1].process.send_signal(signal.SIGTERM)
    assert [child.end() for child in children] == [143, 143], "\n".join(child.output for child in children)
    steps = complete_steps(tmp_path / "checkpoints")
    assert steps and steps[-1] >= 4
    finish(toy(tmp_path))
    assert_same_curve(tmp_path, twin)
