"""No loss and no gradient depends on how many devices or microbatches share a batch."""

import json

import pytest

from ssl_jax import downstream, pretext
from tests.task_examples import EXAMPLES, WITHOUT_LOSS, write_data

REGISTERED = [name for name in (*pretext.TASKS, *downstream.TASKS) if name not in WITHOUT_LOSS]

CODE = """
import json, pathlib
import numpy as np
from ssl_jax.training.rules import flatten
from tests.task_examples import config_of
from tests.training.cuts import distance, gradients

found = {}
for option, config in config_of(TASK, pathlib.Path(ROOT)).items():
    _, _, loss, outputs, grads = gradients(config, dict(data=1), 1, 16)
    rows = []
    for devices, accumulation in CUTS:
        program, _, other, outs, g = gradients(config, dict(data=devices), accumulation, 16)
        assert program.mesh.size == devices, (program.mesh.size, devices)
        outputs_apart = max([distance({0: outs[k]}, {0: outputs[k]}) for k in outputs if np.any(outputs[k])], default=0.0)
        rows.append([devices, accumulation, abs(other - loss) / abs(loss), outputs_apart, distance(flatten(g), flatten(grads))])
    found[option] = [loss, rows]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples")
    write_data(path)
    return path


def test_every_registered_task_has_an_example():
    assert sorted(EXAMPLES) == sorted(REGISTERED)


FEW = [(2, 2)]
ALL = [(devices, accumulation) for devices in (1, 2, 4) for accumulation in (1, 2, 4) if (devices, accumulation) != (1, 1)]
QUICK = ("next_token",)


def cases():
    """One task in the default tests, the others in the slow ones, and all cuts of all tasks at night."""
    for task in REGISTERED:
        yield pytest.param(task, FEW, id=f"{task}-few", marks=() if task in QUICK else pytest.mark.slow)
        yield pytest.param(task, ALL, id=f"{task}-all", marks=pytest.mark.nightly)


@pytest.mark.parametrize("task, cuts", list(cases()))
def test_devices_and_microbatches_change_no_loss_metric_or_gradient(task, cuts, root, child):
    """A failure here means that a loss relates the examples of a piece of the batch to each other, or averages terms with
    the wrong weight. What relates examples belongs into `Task.prepare`, or into `embed` and `joint_loss`."""
    code = CODE.replace("TASK", repr(task)).replace("ROOT", repr(str(root))).replace("CUTS", repr(cuts))
    for option, (loss, rows) in json.loads(child(code, devices=4, timeout=1800).splitlines()[-1]).items():
        assert loss == loss and loss != 0
        for devices, accumulation, loss_apart, outputs_apart, gradients_apart in rows:
            where = f"{task} {option}: {devices} devices, accumulation {accumulation}"
            assert loss_apart < 3e-6, where
            assert outputs_apart < 1e-4, where
            assert gradients_apart < 1e-4, where
