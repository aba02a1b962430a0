"""No loss and no gradient depends on how many devices or microbatches share a batch."""

import json

import pytest

from ssl_jax import downstream, pretext
from tests.task_examples import EXAMPLES, WITHOUT_LOSS, write_data

REGISTERED = [name for name in (*pretext.TASKS, *downstream.TASKS) if name not in WITHOUT_LOSS]

CODE = """
import json, pathlib
import jax, numpy as np
from ml_collections import ConfigDict
from ssl_jax import randomness, runs
from ssl_jax.training.rules import flatten
from tests.task_examples import config_of

def gradients(config, devices, accumulation):
    training = {**config["training"], "accumulation": accumulation}
    config = ConfigDict({**config, "mesh": dict(data=devices), "training": training})
    parts = runs.prepare(config)
    program = runs.trainer_of(parts).program
    state = program.create(program.hyper(batch_size=16, seed=0, total_steps=10, warmup_steps=0, cooldown_steps=0))
    if program.task.scheduled() or jax.tree.leaves(state.variables):
        state = state.replace(step=state.step + 3)

    def value(state, raw):
        key = randomness.stream(1, "task", 3)
        batch = dict(program.task.prepare(parts.stream.on_device({}, raw, randomness.stream(1, "augment", 3)), key, train=True))
        return program.step.gradients(state.params, batch, key, program.step.context(state))

    loss, outputs, grads = jax.jit(value)(state, program.put(parts.stream.host_batch(3), 1))
    assert program.mesh.size == devices, (program.mesh.size, devices)
    return float(loss), {k: np.asarray(v, np.float64) for k, v in outputs.items() if k != "loss"}, jax.device_get(grads)

def distance(a, b):
    apart, size = (sum(np.sum((a[k] - x[k]) ** 2.0) for k in a) for x in (b, jax.tree.map(np.zeros_like, b)))
    return float(np.sqrt(apart / max(size, 1e-30)))

found = {}
for option, config in config_of(TASK, pathlib.Path(ROOT)).items():
    config["data"]["placement"] = "host"
    loss, outputs, grads = gradients(config, 1, 1)
    rows = []
    for devices, accumulation in CUTS:
        other, outs, g = gradients(config, devices, accumulation)
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
MANY = [
    (devices, accumulation)
    for devices in (1, 2, 4)
    for accumulation in (1, 2, 4)
    if (devices, accumulation) not in [(1, 1), *FEW]
]


RELATE_EXAMPLES = ("classification", "image_text", "masked_token", "self_distillation")  # the others' cuts are all slow tests
CASES = [
    pytest.param(task, cuts, id=f"{task}-{name}", marks=[] if cuts is FEW and task in RELATE_EXAMPLES else pytest.mark.slow)
    for task in REGISTERED
    for name, cuts in (("few", FEW), ("many", MANY))
]


@pytest.mark.parametrize("task, cuts", CASES)
def test_devices_and_microbatches_change_no_loss_metric_or_gradient(task, cuts, root, child):
    """A failure here means that a loss relates the examples of a piece of the batch to each other, or averages terms with
    the wrong weight. What relates examples belongs into `Task.prepare`, or into `embed` and `joint_loss`."""
    code = CODE.replace("TASK", repr(task)).replace("ROOT", repr(str(root))).replace("CUTS", repr(cuts))
    for option, (loss, rows) in json.loads(child(code, devices=4).splitlines()[-1]).items():
        assert loss == loss and loss != 0
        for devices, accumulation, loss_apart, outputs_apart, gradients_apart in rows:
            where = f"{task} {option}: {devices} devices, accumulation {accumulation}"
            assert loss_apart < 3e-6, where
            assert outputs_apart < 1e-4, where
            assert gradients_apart < 1e-4, where
