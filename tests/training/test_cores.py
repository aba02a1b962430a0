"""Each core of a CPU as a device of its own: the same sums, and as many cores as a batch allows."""

import json
import platform

import pytest

LEARN = """
import json
import jax
from ssl_jax import config as configs
from ssl_jax import runs

curves = []
for options in OPTIONS:
    changes = {"data.batch_size": "24", "model.width": "16", "model.depth": "1", "model.heads": "2",
               "training.duration": "6 steps", "training.log_every": "1", **options}
    parts = runs.prepare(configs.load(FILE, changes))
    trainer = runs.trainer_of(parts)
    batch = {name: jax.numpy.asarray(value) for name, value in parts.stream.host_batch(0, slice(0, 24)).items()}
    params = jax.jit(trainer.task.init)(jax.random.key(0), jax.eval_shape(trainer.stream.on_device, parts.stream.resident,
                                                                           batch, jax.random.key(0)))
    batch = trainer.stream.on_device(parts.stream.resident, batch, jax.random.key(0))
    with trainer.mesh:
        value, metrics, grads = jax.jit(trainer.step.gradients)(params, batch, jax.random.key(1))
    state = trainer.run(seed=0, quiet=True)
    norms = [float(jax.numpy.linalg.norm(x)) for tree in (grads, state.params) for x in jax.tree.leaves(tree)]
    curves.append([trainer.mesh.size, trainer.step.cores is not None, float(value),
                   {name: float(x) for name, x in metrics.items()}, norms])
print(json.dumps(curves))
"""


@pytest.mark.parametrize(
    "file, cores, options",
    [
        ("configs/gpt/shakespeare_char_cpu.py", 4, {}),
        ("configs/bert/shakespeare_cpu.py", 2, {"mesh.data": "2", "training.accumulation": "3"}),
    ],
)
def test_cores_add_up_to_the_whole_batch(child, file, cores, options):
    """Loss, metrics, gradients and six steps of one core and of several, with accumulation too, agree to the rounding of sums.

    The masked-token loss is a mean over a number of tokens that differs between the cores' rows: a failure may mean that
    their weights were left out.
    """
    code = LEARN.replace("OPTIONS", repr([{"mesh.data": "1"}, options])).replace("FILE", repr(file))
    one, several = json.loads(child(code, devices=4).splitlines()[-1])
    assert one[:2] == [1, False] and several[:2] == [cores, True]
    assert several[2] == pytest.approx(one[2], rel=2e-6)
    assert several[3] == pytest.approx(one[3], rel=2e-6)
    assert several[4] == pytest.approx(one[4], rel=2e-4, abs=2e-6)


CHOICE = """
import os
[os.environ.pop(name, None) for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")]
os.environ.update(ENVIRONMENT)
import jax
from ssl_jax import cpu
from ssl_jax.training import sharding
from ssl_jax.training.settings import MeshSettings
cpu.cores = lambda: 6
if EARLY:
    jax.devices()
cpu.configure()
mesh = lambda rows, **axes: sharding.make_mesh(MeshSettings(**axes), rows=rows).size
print([jax.device_count(), [mesh(rows) for rows in (1, 4, 8, 12, 13, 64)], mesh(8, data=1),
       sharding.fitted(sharding.make_mesh(MeshSettings()), 8).size])
"""


@pytest.mark.parametrize(
    "environment, early, expected",
    [
        ({}, False, [4, [1, 1, 2, 3, 1, 4], 1, 2]),
        ({}, True, [1, [1, 1, 1, 1, 1, 1], 1, 1]),
        ({"JAX_NUM_CPU_DEVICES": "2"}, False, [2, [2, 2, 2, 2, 2, 2], 1, 2]),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, False, [3, [3, 3, 3, 3, 3, 3], 1, 3]),
    ],
)
def test_cores_are_devices_unless_someone_has_said_otherwise(child, environment, early, expected):
    """Of our own cores, some may be left idle; devices that were asked for are all taken (and must divide the batch)."""
    code = CHOICE.replace("ENVIRONMENT", repr(environment)).replace("EARLY", str(early))
    assert json.loads(child(code).splitlines()[-1]) == expected


KEPT = """
import resource
import jax, jax.numpy as jnp
from ssl_jax import cpu
cpu.configure()
assert cpu.keep_freed_memory()
call = jax.jit(lambda x: jnp.sum(jnp.sin(x @ x.T) @ x))
x = jax.block_until_ready(jnp.ones((6000, 64)))
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(call(x))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(11)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is freed is kept with glibc")
def test_a_program_of_one_device_keeps_its_working_memory(child):
    """144 MB are 35,000 pages: the first calls take them from the kernel, nearly all of the others have them."""
    calls = json.loads(child(KEPT).splitlines()[-1])
    assert sorted(calls)[len(calls) // 2] < 3_000, calls
