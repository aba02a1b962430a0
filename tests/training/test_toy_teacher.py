"""A task with a teacher, a centre, two views and schedules is this file and nothing else; a kill changes no bit of its run."""

import dataclasses
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import ssl_jax.pretext
from ssl_jax.task import DataInfo, Task
from ssl_jax.training.checkpoint import complete_steps, read_arrays

ssl_jax.pretext.TASKS["toy_teacher"] = "tests.training.test_toy_teacher:ToyTeacher"


@dataclasses.dataclass(frozen=True)
class ToyTeacher(Task):
    """Match the moving average on the other view (DINO without a network)."""

    info: DataInfo
    name, data, needs_teacher = "toy_teacher", "images", True

    @classmethod
    def from_config(cls, config, info):
        return cls(info)

    def init(self, key, batch):
        return {"encoder": {"kernel": 0.1 * jax.random.normal(key, (64, 8))}}

    def variables(self, params):
        return {"centre": jnp.zeros(8)}

    def scheduled(self):
        return {"temperature": 0.1}

    def loss(self, params, batch, key, *, train, context=None):
        views = batch["views"].reshape(-1, 2, 64)
        taught = jax.lax.stop_gradient(views @ context.teacher["encoder"]["kernel"])
        target = jax.nn.softmax((taught - context.variables["centre"]) / context.numbers["temperature"])
        loss = -jnp.mean(jnp.sum(target[:, ::-1] * jax.nn.log_softmax(views @ params["encoder"]["kernel"]), axis=-1))
        return loss, {"taught": jnp.mean(taught, axis=(0, 1)), "temperature": context.numbers["temperature"]}

    def after_update(self, params, variables, statistics, context):
        return params, {"centre": 0.9 * variables["centre"] + 0.1 * statistics["taught"]}

    def features(self, params, batch):
        return {"mean": batch["image"].reshape(-1, 64) @ params["encoder"]["kernel"]}


def get_config(file):
    views = dict(views=dict(count=2, augment=dict(crop=dict(padding=1), flip=True)))
    data = dict(train=f"npz:{file}", test=f"npz:{file}", batch_size=16, normalize=None, views=views)
    schedules = dict(ema=dict(start=0.9, end=1.0), temperature=dict(start=0.2, end=0.1, shape="linear", over="20 steps"))
    config = dict(task=dict(name="toy_teacher"), model={}, data=data, schedules=schedules, optimizer=dict(lr=1e-2))
    return ConfigDict(config | dict(training=dict(duration="600 steps"), checkpoint=dict(every=100), downstream=dict(knn={})))


@pytest.mark.chaos
def test_a_killed_run_ends_like_its_twin_and_is_evaluated_by_its_teacher(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (256, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=(images.mean((1, 2, 3)) > 127).astype(np.int32))
    command = [f"{sys.prefix}/bin/ssl-jax", "run", f"--config={__file__}:{tmp_path}/images.npz", "--workdir"]
    options = dict(env={**os.environ, "PYTHONPATH": "."}, cwd=os.path.dirname(ssl_jax.__path__[0]))
    killed = subprocess.Popen([*command, tmp_path / "killed"], **options)
    while killed.poll() is None and not complete_steps(tmp_path / "killed/checkpoints"):
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() != 0
    killed, twin = (subprocess.run([*command, tmp_path / name], check=True, **options) for name in ("killed", "twin"))
    killed, twin = (read_arrays(tmp_path / name / "checkpoints/00000600") for name in ("killed", "twin"))
    assert killed.keys() == twin.keys() and all(np.array_equal(killed[path], twin[path]) for path in twin)
    read = ssl_jax.load(tmp_path / "twin").params["encoder"]["kernel"]
    assert np.array_equal(read, twin["ema/encoder/kernel"]) and not np.array_equal(read, twin["params/encoder/kernel"])
    assert '"knn/accuracy"' in (tmp_path / "killed/results.json").read_text() and np.any(twin["variables/centre"])
