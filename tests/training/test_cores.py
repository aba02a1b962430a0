"""Each core of a CPU as a device of its own: as many cores as a batch allows."""

import json

import pytest

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
