"""The recipes of methods that predict representations: each fits its data, task, schedules and evaluators."""

import json
import pathlib

import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import runs

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
METHODS = ("ijepa", "data2vec", "dino", "simclr", "vicreg")
VARIANTS = {
    "ijepa/vit_imagenet.py": ("variant=B", "variant=L", "variant=H"),
    "data2vec/vit_imagenet.py": ("variant=B", "variant=L"),
    "dino/vit_imagenet.py": ("epochs=100", "epochs=300"),
}
FILES = sorted(str(path.relative_to(FOLDER)) for method in METHODS for path in (FOLDER / method).glob("*.py"))
SPECS = [spec for file in FILES for spec in ([f"{file}:{v}" for v in VARIANTS[file]] if file in VARIANTS else [file])]


def config_of(spec, folder, **overrides):
    """A recipe on 24 images of its own size, with batches of 8."""
    config = configs.load(str(FOLDER / spec), {"data.batch_size": "8", **overrides})
    if not config.data.train.startswith("bundled:"):
        images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), np.uint8)
        np.savez(folder / "images.npz", image=images, label=np.arange(24) % 2)
        config.data.train = config.data.test = f"npz:{folder / 'images.npz'}"
    return config


@pytest.mark.parametrize("spec", SPECS)
def test_a_recipe_fits_its_data_and_names_its_file(spec, tmp_path):
    config = config_of(spec, tmp_path)
    parts = runs.prepare(config)
    assert parts.task.flops() > 0 and parts.evaluators
    assert parts.task.needs_teacher == (parts.schedules.ema is not None or parts.training.ema is not None)
    assert f"--config=configs/{spec.partition(':')[0]}" in config.card


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_trains(method, tmp_path):
    overrides = {"training.duration": "2 steps", "optimizer.warmup": "1 steps", "training.log_every": "1", "model.depth": "6"}
    config = config_of(f"{method}/cifar10.py", tmp_path, **overrides)
    runs.pretrain(config, str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line) and lines[-1]["step"] == 2
