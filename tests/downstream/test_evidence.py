"""The evaluators from the command line: one number whenever it is asked for, and a mistake in the data is one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import cli
from ssl_jax.training import checkpoint
from tests.test_runs import two_kinds

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.data = dict(train="npz:{0}/train.npz", test="npz:{0}/test.npz", batch_size=8, augment=dict(flip=True))
    c.task = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))
    c.model = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
    c.training = dict(duration="4 steps", evaluate_every="4 steps")
    c.optimizer = dict(lr=1e-3)
    c.checkpoint = dict(features=True)
    c.downstream = {{"knn": dict(k=5), "few_shot": dict(shots=(1, 5)), "linear_probe": dict()}}
    c.downstream["linear_probe:grid"] = dict(protocol="grid", representation=("mean", "block00/mean"), epochs=3, batch_size=16)
    short = dict(training=dict(duration="2 steps"), batch_size=16)
    c.downstream.label_efficiency = dict(fractions=(0.5,), seeds=2, finetune=short, scratch=dict(learning_rates=(1e-3,)))
    return c
"""


def save(folder, train=None, test=None):
    """train.npz and test.npz, with other arrays in place of their own where given."""
    for name, arrays, other in zip(("train", "test"), (two_kinds(64, 0), two_kinds(33, 1)), (train, test), strict=True):
        np.savez(folder / f"{name}.npz", **arrays | (other or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    save(folder)
    (folder / "config.py").write_text(CONFIG.format(folder))
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]) == 0
    return folder


def test_during_training_at_the_end_and_again_the_numbers_are_the_same_to_the_last_digit(folder):
    """Every evaluator of a frozen encoder and every one that trains; after the last step, from memory and from disk."""
    run = folder / "run"
    during = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    results = json.loads((run / "results.json").read_text())
    assert {name.partition("/")[0] for name in results} == {
        "knn", "few_shot", "linear_probe", "linear_probe:grid", "label_efficiency"
    }  # fmt: skip
    assert during["step"] == 4 and {name: during.get(name) for name in results} == results
    assert any((run / "features").rglob("mean.npy"))
    assert cli.main(["evaluate", f"--workdir={run}"]) == 0  # features from the disk
    assert json.loads((run / "results.json").read_text()) == results
    for file in (run / "features").rglob("*.npy"):
        file.unlink()
    assert cli.main(["evaluate", f"--workdir={run}", "--config.downstream.label_efficiency=None"]) == 0
    assert json.loads((run / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("train", "test", "override", "message"),
    [
        (dict(label=np.arange(64) % 2 * 2), {}, "linear_probe", "the training split has no example of class 1; remove"),
        ({}, {}, "few_shot.shots=(40,)", "shots=40: class 0 has only 32 training examples; ask for fewer shots"),
        (dict(classes=["cat", "dog"]), dict(label=np.arange(33) % 6), "label_efficiency",
         "none of its classes occurs in the training data"),
        ({}, {}, "knn.k=65", "k=65: there are only 64 training examples"),
        ({}, {}, 'label_efficiency.finetune={"task": {"poolin": "cls"}}', "unknown key task.poolin; did you mean task.pooling"),
        ({}, {}, 'label_efficiency.scratch={"training": {"duration": "1 steps"}}', "1 steps on 50% of the labels, but"),
    ],
    ids=["a class is missing", "more shots than examples", "classes of other names", "more neighbours",
         "a wrong recipe", "a baseline that gets less"],
)  # fmt: skip
def test_labels_that_teach_nothing_are_one_line_before_training(folder, tmp_path, capsys, train, test, override, message):
    save(tmp_path, train, test)
    command = ["run", f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'never'}"]
    command += [f"--config.data.{split}=npz:{tmp_path}/{split}.npz" for split in ("train", "test")]
    command += [f"--config.downstream.{override}"] if "=" in override else []
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "never").exists()


def test_features_that_are_not_numbers_are_one_line(folder, capsys, monkeypatch):
    def broken(path, step=None, load=checkpoint.load_params):
        step, params = load(path, step)
        return step, jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), params)

    monkeypatch.setattr(checkpoint, "load_params", broken)
    for file in (folder / "run" / "features").rglob("*.npy"):
        file.unlink()
    before = (folder / "run" / "results.json").read_bytes()
    assert cli.main(["evaluate", f"--workdir={folder / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "64 of 64 examples hold NaN or infinity; training diverged: lower optimizer.lr" in error
    assert error.count("\n") == 1 and (folder / "run" / "results.json").read_bytes() == before


@pytest.mark.slow
def test_a_classifier_is_trained_from_a_checkpoint_and_measured(folder):
    """`ssl-jax finetune --init`; what its loop has logged is what the evaluator counts afterwards."""
    text = (folder / "config.py").read_text()
    start, end = text.index("    c.downstream"), text.index("    return")
    text = text[:start] + "    c.downstream = dict(classification=dict())\n" + text[end:]
    text = text.replace('name="masked_image", decoder=dict(width=8, depth=1, heads=2)', 'name="classification"')
    (folder / "classifier.py").write_text(text)
    run = folder / "classifier"
    command = ["finetune", f"--config={folder / 'classifier.py'}", f"--workdir={run}", f"--init={folder / 'run'}"]
    assert cli.main([*command, "--config.training.duration=40 steps", "--config.optimizer.lr=3e-3"]) == 0
    results = json.loads((run / "results.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    during = next(line for line in reversed(lines) if "classification/accuracy" in line)
    assert during["step"] == 40 and {name: during[name] for name in results} == results
    assert results["classification/majority/accuracy"] == pytest.approx(17 / 33)
    model, test = ssl_jax.load(run), np.load(folder / "test.npz")
    guesses = model.features({"image": test["image"]})["logits"].argmax(1)
    assert results["classification/accuracy"] == pytest.approx(np.mean(guesses == test["label"])) and 0.6 < np.mean(
        guesses == test["label"]
    )
