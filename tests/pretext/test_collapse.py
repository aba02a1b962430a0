"""A run that is made to collapse is named while it trains."""

import re

import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import runs

STEPS = 400
TEACHER = dict(schedules=dict(ema=dict(start=0.9, end=1.0)))
DINO = dict(name="self_distillation", prototypes=64, hidden=32, bottleneck=16)
VICREG = dict(name="joint_embedding", loss="vicreg", hidden=(32,), outputs=32)


def config_of(folder, task, view, **more):
    images = np.random.default_rng(0).integers(0, 256, (128, 8, 8, 1), np.uint8)
    np.savez(folder / "images.npz", image=images, label=np.arange(128) % 2)
    views = {view: dict(count=2, augment=dict(crop=dict(padding=1), flip=True))}
    data = dict(train=f"npz:{folder / 'images.npz'}", holdout=0.0, batch_size=32, placement="device", views=views)
    training = dict(duration=f"{STEPS} steps", log_every=2, tensorboard=False)
    model = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
    optimizer = dict(name="adamw", lr=3e-2)
    return ConfigDict(dict(data=data, task=task, model=model, training=training, optimizer=optimizer) | more)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "view", "more", "said"),
    [
        (DINO | dict(centring=None), "globals", TEACHER, "nearly all images have the same target"),
        (VICREG | dict(variance=0.0, covariance=0.0), "pair", {}, "the embeddings of all images are nearly the same"),
        (VICREG, "pair", {}, None),
    ],
    ids=["DINO without centring", "VICReg without its variance term", "VICReg"],
)
def test_a_run_made_to_collapse_is_named_within_its_first_tenth(task, view, more, said, tmp_path, capsys):
    runs.pretrain(config_of(tmp_path, task, view, **more), str(tmp_path / "run"))
    found = re.findall(r"ssl-jax: step (\d+): collapsed: (.*)", capsys.readouterr().err)
    if said is None:
        assert not found
    else:
        step, line = found[0]
        assert said in line and int(step) <= STEPS // 10
