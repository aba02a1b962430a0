"""Loss and gradients on a mesh of eight devices are those of one device, whatever is split over which axis."""

import json

import pytest

from tests.task_examples import write_data

CODE = """
import json, pathlib
import jax
from ssl_jax.training.rules import flatten
from tests.task_examples import config_of
from tests.training.cuts import distance, gradients

found = {}
for option, config in config_of(TASK, pathlib.Path(ROOT)).items():
    _, _, loss, _, grads = gradients(config, dict(data=1, fsdp=1, tensor=1), 1, 32)
    rows = []
    for mesh, accumulation in CASES:
        program, state, other, _, g = gradients(config, dict(zip(("data", "fsdp", "tensor"), mesh)), accumulation, 32)
        assert program.mesh.devices.shape == mesh
        whole = sum(x.nbytes for x in jax.tree.leaves(state.params))
        share = whole / sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params))
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
    "translation",
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


CASES = [
    *(pytest.param(t, FEW, id=f"{t}-few", marks=pytest.mark.slow) for t in FAMILIES),
    *(pytest.param(task, ALL, id=f"{task}-all", marks=pytest.mark.nightly) for task in FAMILIES),
]


@pytest.mark.parametrize("task, cases", CASES)
def test_a_mesh_changes_no_loss_and_no_gradient(task, cases, root, child):
    """To 1e-5. With fsdp=8 each device holds at most a seventh of the parameters."""
    code = CODE.replace("TASK", repr(task)).replace("ROOT", repr(str(root))).replace("CASES", repr(cases))
    for option, rows in json.loads(child(code, devices=8, timeout=1800).splitlines()[-1]).items():
        for mesh, accumulation, loss, gradients, share in rows:
            where = f"{task} {option}: mesh {mesh}, accumulation {accumulation}"
            assert loss < 1e-5 and gradients < 1e-5, (where, loss, gradients)
            if mesh == [1, 8, 1]:
                assert share >= 7, (where, share)
