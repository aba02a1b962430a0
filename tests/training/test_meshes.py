"""Loss and gradients on a mesh of eight devices are those of one device, whatever is split over which axis."""

import json

import pytest

from tests.task_examples import write_data

CODE = """
import json, pathlib
import jax, numpy as np
from ml_collections import ConfigDict
from ssl_jax import randomness, runs
from ssl_jax.training.rules import flatten
from tests.task_examples import config_of

def gradients(config, mesh, accumulation):
    training = {**config["training"], "accumulation": accumulation}
    data = {**config["data"], "batch_size": 32, "placement": "host"}
    config = ConfigDict({**config, "mesh": dict(zip(("data", "fsdp", "tensor"), mesh)), "training": training, "data": data})
    parts = runs.prepare(config)
    program = runs.trainer_of(parts).program
    state = program.create(program.hyper(batch_size=32, seed=0, total_steps=10, warmup_steps=0, cooldown_steps=0))
    if program.task.scheduled() or jax.tree.leaves(state.variables):
        state = state.replace(step=state.step + 3)

    def value(state, raw):
        key = randomness.stream(1, "task", 3)
        batch = dict(program.task.prepare(parts.stream.on_device({}, raw, randomness.stream(1, "augment", 3)), key, train=True))
        return program.step.gradients(state.params, batch, key, program.step.context(state))

    with jax.sharding.use_abstract_mesh(program.mesh.abstract_mesh):
        loss, _, grads = jax.jit(value)(state, program.put(parts.stream.host_batch(3), 1))
    assert program.mesh.devices.shape == mesh
    whole = sum(x.nbytes for x in jax.tree.leaves(state.params))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params))
    return float(loss), jax.device_get(grads), whole / held

def distance(a, b):
    apart, size = (sum(np.sum((a[k] - x[k]) ** 2.0) for k in a) for x in (b, jax.tree.map(np.zeros_like, b)))
    return float(np.sqrt(apart / size))

found = {}
for option, config in config_of(TASK, pathlib.Path(ROOT)).items():
    loss, grads, _ = gradients(config, (1, 1, 1), 1)
    rows = []
    for mesh, accumulation in CASES:
        other, g, share = gradients(config, mesh, accumulation)
        rows.append([mesh, accumulation, abs(other - loss) / abs(loss), distance(flatten(g), flatten(grads)), share])
    found[option] = rows
print(json.dumps(found))
"""
MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2))
ALL = [(mesh, accumulation) for mesh in MESHES for accumulation in (1, 2, 4)]
FEW = [((1, 8, 1), 1), ((2, 2, 2), 2)]
FAMILIES = (
    "masked_image",
    "next_token",
    "masked_token",
    "image_text",
    "joint_embedding",
    "self_distillation",
    "classification",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("examples")
    write_data(path)
    return path


@pytest.mark.parametrize("task, cases", [
    ("next_token", FEW), *(pytest.param(task, ALL, marks=pytest.mark.slow) for task in FAMILIES)
], ids=["few", *FAMILIES])  # fmt: skip
def test_a_mesh_changes_no_loss_and_no_gradient(task, cases, root, child):
    """To 1e-5. With fsdp=8 each device holds at most a seventh of the parameters."""
    code = CODE.replace("TASK", repr(task)).replace("ROOT", repr(str(root))).replace("CASES", repr(cases))
    for option, rows in json.loads(child(code, devices=8, timeout=1800).splitlines()[-1]).items():
        for mesh, accumulation, loss, gradients, share in rows:
            where = f"{task} {option}: mesh {mesh}, accumulation {accumulation}"
            assert loss < 1e-5 and gradients < 1e-5, (where, loss, gradients)
            if mesh == [1, 8, 1]:
                assert share >= 7, (where, share)
