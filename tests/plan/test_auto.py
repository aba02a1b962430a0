"""What a config leaves "auto" is chosen by its sizes and the devices' memory, and only there."""

import json

import pytest

from ssl_jax import config as configs
from ssl_jax import runs
from ssl_jax.plan import auto, fit
from ssl_jax.target import Target
from ssl_jax.workdir import Workdir

H100, V5E = "NVIDIA H100 80GB HBM3", "TPU v5 lite"
MAE, GPT = "configs/mae/vit_imagenet.py:variant=H", "configs/gpt/gpt2_124m.py"
SHALLOW = {"model.depth": "2", "task.decoder.depth": "1"}


def chosen(file, target, **overrides):
    return auto.resolve(configs.load(file, {key.replace("__", "."): str(v) for key, v in overrides.items()}), target)[1]


def test_what_fits_is_not_recomputed():
    found = chosen(MAE, Target("gpu", H100, 8), **SHALLOW, data__batch_size=64)
    stacks = {
        f"{path}.{key}": value for path in ("model", "task.decoder") for key, value in (("remat", "none"), ("scan", False))
    }
    assert found == stacks | {"mesh.data": -1}


def test_many_rows_are_recomputed():
    found = chosen(MAE, Target("gpu", H100, 1), **SHALLOW, data__batch_size=4096)
    assert found["model.remat"] in ("dots", "full") and found["mesh.data"] == -1
    assert found["task.decoder.remat"] == found["model.remat"]  # of a masked autoencoder the decoder sees most tokens


def test_a_large_state_is_split():
    """1.2 billion parameters take 19 GB of state and gradients: too much for one chip of 16 GiB."""
    found = chosen(GPT, Target("tpu", V5E, 16), model__depth=6, model__width=4096, model__heads=32, model__scan=False,
                   data__batch_size=64, data__block=128, training__accumulation=1)  # fmt: skip
    assert found["mesh.fsdp"] >= 4 and found["mesh.fsdp"] * found["mesh.data"] == 16


@pytest.mark.parametrize("count, first", [(256, (32, 8)), (8, (1, 8)), (12, (3, 4))])
def test_parameters_are_split_over_eight_devices_first(count, first):
    """They then sum 1 + 1/8 times the gradient; over four devices it would be 1 + 1/4."""
    assert list(fit.splits(count)[0].values()) == list(first)
    assert all(mesh["mesh.data"] * mesh["mesh.fsdp"] == count for mesh in fit.splits(count))


def test_deep_stacks_of_equal_blocks_are_scanned():
    deep = dict(model__depth=24, model__width=8, model__heads=1, task__decoder__depth=1, task__decoder__width=8,
                task__decoder__heads=1, data__batch_size=8)  # fmt: skip
    assert chosen(MAE, Target("tpu", V5E, 4), **deep)["model.scan"] is True
    modern = chosen("configs/bert/modernbert_base.py", Target("tpu", V5E, 4), model__depth=24, model__width=64, model__heads=1)
    assert modern["model.scan"] is False


@pytest.mark.parametrize("target", [Target("cpu", "cpu", 2), Target("gpu", "a card that no table knows", 8)])
def test_elsewhere_nothing_is_chosen(target):
    config = configs.load(MAE, {"model.remat": "auto", "mesh": "auto"})
    resolved, found = auto.resolve(config, target)
    assert found == {} and resolved.model.remat == "none" and "scan" not in resolved.model and not resolved.mesh


def test_what_the_config_sets_stays():
    given = {"model.remat": "full", "model.scan": "True", "mesh.data": "8"}
    decoder = {"task.decoder.remat": "none", "task.decoder.scan": "False"}
    resolved, found = auto.resolve(configs.load(MAE, given | decoder), Target("gpu", H100, 8))
    assert found == {} and resolved.model.remat == "full" and resolved.model.scan is True


def test_the_record_says_what_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(auto, "resolve", lambda config, target: (config, {"model.remat": "none"}))
    config = configs.load("configs/mae/fashion_mnist.py", {"data.batch_size": "4", "downstream": "{}"})
    runs.start(runs.prepare(config), Workdir.at(tmp_path), [], evaluate=False)
    assert json.loads((tmp_path / "config.json").read_text())["chosen"] == {"model.remat": "none"}
