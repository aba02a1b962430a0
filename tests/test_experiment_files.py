"""The experiments of the repository: every file is read, and every arm of it is a config that fits its data."""

import pathlib

import numpy as np
import pytest

from ssl_jax import cli, experiments, runs
from ssl_jax.data.sources.bundled import fashion_mnist

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = {"throughput"}  # folders of scripts, one of which writes an experiment
FILES = [path for path in sorted((ROOT / "experiments").glob("*/*.py")) if path.parent.name not in SCRIPTS]
FILES = [path for path in FILES if "def get_experiment" in path.read_text()]
FIRST = ("mae/mask_token",)
TINY = {
    "mae": ["--config.training.duration=2 steps", "--config.downstream.label_efficiency=None",
            "--config.downstream.linear_probe.l2=(1e-2,)"],
    "bert": ["--config.training.duration=2 steps", "--config.model.depth=1", "--config.data.tokenizer.size=300"],
    "gpt": ["--config.training.duration=2 steps", "--config.model.depth=1", "--config.optimizer.warmup=1 steps"],
}  # fmt: skip


def name_of(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_arm_fits_its_data(file):
    experiment = experiments.load(str(file))
    assert experiment.card.strip().splitlines()[0].endswith(".") and str(file.relative_to(ROOT)) in experiment.card
    for arm in experiment.arms:
        parts = runs.prepare(experiment.config(arm, 0))
        for metric in experiment.settings.columns:
            assert metric.partition("/")[0] in parts.evaluators


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A twentieth of Fashion-MNIST: probes over all of it are most of an experiment's time."""
    folder = tmp_path_factory.mktemp("few")
    for split, count in (("train", 3000), ("test", 500)):
        source = fashion_mnist(split)
        label = np.asarray(source.labels()[:count], np.int32)
        np.savez(folder / f"{split}.npz", image=source.arrays["image"][:count], label=label)
    return {split: f"npz:{folder / split}.npz" for split in ("train", "test")}


def in_turn():
    """One is a slow test, the others nightly ones."""
    for file in FILES:
        yield pytest.param(file, id=name_of(file), marks=getattr(pytest.mark, "slow" if name_of(file) in FIRST else "nightly"))


@pytest.mark.parametrize("file", list(in_turn()))
def test_every_experiment_runs(file, tmp_path, few_images):
    """Two steps of every arm, and the cheap evaluators."""
    if file.parent.name == "pretext":  # arms set their own lengths
        experiment = experiments.load(str(file))
        for arm in experiment.arms:
            config = experiment.config(arm, 0)
            config.training.duration, config.downstream = "2 steps", dict(knn=dict(k=20, baselines=False))
            config.data.update(few_images)
            assert runs.run(config, str(tmp_path / arm.folder)) == 0
        return
    overrides = [word for word in TINY[file.parent.name] if "label_efficiency" not in word]
    if file.parent.name == "mae":
        overrides += ["--config.downstream.label_efficiency.durations=('1 epochs',)"]
        overrides += [f"--config.data.{split}={source}" for split, source in few_images.items()]
    if file.stem == "training_length":
        overrides = [word for word in overrides if "training.duration" not in word]
        overrides += ["--config.data.batch_size=300"]
    command = ["sweep", f"--experiment={file}", f"--workdir={tmp_path}", "--experiment.seeds=1", *overrides]
    assert cli.main(command) == 0
    assert '"missing": []' in (tmp_path / "report.json").read_text()
