"""A run measured on other data, selected on a part of its training data, and made longer."""

import json

import numpy as np
import pytest

from ssl_jax import cli, runs
from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.training import rules
from ssl_jax.training.checkpoint import complete_steps
from tests.test_runs import two_kinds

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.data = dict(train="npz:{0}/train.npz", test="npz:{0}/test.npz", batch_size=8)
    c.task = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))
    c.model = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
    c.training = dict(duration="4 steps", log_every=2, tensorboard=False)
    c.optimizer = dict(lr=1e-3, schedule="constant")
    c.downstream = dict(knn=dict(k=5))
    return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    np.savez(folder / "train.npz", **two_kinds(64, 0))
    np.savez(folder / "test.npz", **two_kinds(32, 1))
    other = two_kinds(24, 2)
    np.savez(folder / "other.npz", image=other["image"], label=1 - other["label"])  # every label is wrong
    (folder / "config.py").write_text(CONFIG.format(folder))
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    words = ["--config.task.mask.ratio=0.5", "--config.data.augment.flip=True"]
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}", *words]) == 0
    return folder / "run"


def stored(workdir, name):
    return json.loads((workdir / name).read_text())


def test_a_run_records_the_command_and_what_it_changed_of_the_config(folder, finished):
    found = stored(finished, "config.json")
    assert found["overrides"] == {"task.mask.ratio": "0.5", "data.augment.flip": "True"}
    assert found["config_file"] == f"{folder / 'config.py'}"
    assert found["command"].startswith("ssl-jax run --config=") and "--config.task.mask.ratio=0.5" in found["command"]
    assert "--config.task.mask.ratio=0.5" in (finished / "report.md").read_text()


def test_what_is_to_come_is_printed_before_training(folder, tmp_path, capsys):
    words = ["--config.model.class_token=False"]
    assert cli.main(["pretrain", f"--config={folder / 'config.py'}", f"--workdir={tmp_path}", *words]) == 0
    shown = capsys.readouterr().out
    for text in ("64 training examples (image 8 x 8 x 1), 2 classes", "4 steps of 8 examples, 0.5 epochs", "FLOPs a step",
                 "of parameters and optimizer state on each device", "evaluators  knn",
                 "export      not to hf:DIR, for model.class_token=False: ViTMAEForPreTraining has True"):  # fmt: skip
        assert text in shown
    count = sum(np.size(leaf) for leaf in rules.flatten(runs.restore(str(tmp_path))[1]).values())
    assert f"{count / 1e3:.3g} k parameters" in shown


def test_other_data_are_measured_beside_the_run_s_own(folder, finished, capsys):
    before = stored(finished, "results.json")
    name = "knn:npz:" + f"{folder}/other.npz".replace("/", ".")
    assert cli.main(["evaluate", f"--workdir={finished}", f"--data.test=npz:{folder}/other.npz"]) == 0
    after = stored(finished, "results.json")
    assert before == {key: after[key] for key in before}
    assert before["knn/raw_pixels/accuracy"] == 1.0 and after[f"{name}/raw_pixels/accuracy"] == 0.0
    assert name in capsys.readouterr().out and name in (finished / "report.md").read_text()
    assert (
        cli.main(["evaluate", f"--workdir={finished}", f"--config.data.test=npz:{folder}/test.npz", "--data.holdout=0.2"]) == 0
    )
    again = stored(finished, "results.json")
    assert after == {key: again[key] for key in after}
    key = next(key for key in again if key.startswith("knn:npz:") and "holdout=0.2/accuracy" in key)
    assert again[key] == before["knn/accuracy"]


def test_evaluators_of_the_run_are_changed_from_the_command_line(finished):
    before = stored(finished, "results.json")
    assert cli.main(["evaluate", f"--workdir={finished}", "--config.downstream.knn:one.k=1"]) == 0
    after = stored(finished, "results.json")
    assert before == {key: after[key] for key in before} and "knn:one/k=1/accuracy" in after


@pytest.mark.parametrize(
    "words, message",
    [
        (["--config.training.duration=9 steps"], "evaluate can change only downstream, expected and data"),
        (["--data.test=npz:/nowhere.npz"], "there is no such file"),
        (["--data.tset=npz:x"], "unknown key"),
        (["--config.downstream.knnn.k=3"], "did you mean knn?"),
        (["--config.downstream.knn=None"], "names no evaluators"),
    ],
)
def test_a_mistake_in_what_to_evaluate_is_one_line_and_loses_nothing(finished, capsys, words, message):
    before = stored(finished, "results.json")
    assert cli.main(["evaluate", f"--workdir={finished}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and before == stored(finished, "results.json")


def test_a_longer_run_goes_on_and_keeps_the_results_of_the_shorter(folder, finished, capsys):
    words = ["--config.task.mask.ratio=0.5", "--config.data.augment.flip=True", "--config.training.duration=6 steps"]
    before = stored(finished, "results.json")
    command = ["run", f"--config={folder / 'config.py'}", f"--workdir={finished}", *words]
    assert cli.main(command) == 0
    assert stored(finished, "status.json")["trained"] == 6 and complete_steps(finished / "checkpoints")[-1] == 6
    assert stored(finished, "results_00000004.json") == before
    assert [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]
    assert cli.main(command) == 0 and "the run is complete (6 steps)" in capsys.readouterr().out


# Selection --------------------------------------------------------------------------------------------------------------

SELECT = ["--config.training.evaluate_every=2 steps", "--config.checkpoint.best=knn/accuracy"]


@pytest.mark.slow
def test_the_best_is_selected_on_training_data_and_evaluated_on_the_test_split(folder, tmp_path, monkeypatch, capsys):
    """The scores during training are those of step 2, 4, ... here, and no evaluator sees the test split before the end."""
    scores, sizes, seen = iter([0.3, 0.9, 0.5]), [], []
    original = runs.evaluate_during

    def during(parts, state):
        data = parts.selection.data
        sizes.append((data.train.size, data.test.size, parts.stream.dataset.size))
        seen.append(set(data.test.source.describe(i) for i in range(data.test.size)))
        return original(parts, state) | {"knn/accuracy": next(scores)}

    monkeypatch.setattr(runs, "evaluate_during", during)
    words = [*SELECT, "--config.training.duration=6 steps", "--config.checkpoint.keep=1"]
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'run'}", *words]) == 0
    shown = capsys.readouterr().out
    assert "evaluating step 4, the best by knn/accuracy" in shown and "before training, on the examples held out" in shown
    assert complete_steps(tmp_path / "run/checkpoints") == [4, 6]
    (kept, held, trained_on), *_ = sizes
    assert kept + held == 64 and trained_on == kept and 2 <= held <= 14 and all("train.npz" in name for name in seen[0])
    weights = lambda step=None: rules.flatten(runs.restore(str(tmp_path / "run"), step)[1])["encoder/patch_embedding/kernel"]
    assert np.array_equal(weights(), weights(4)) and not np.array_equal(weights(), weights(6))
    results = stored(tmp_path / "run", "results.json")
    assert cli.main(["evaluate", f"--workdir={tmp_path / 'run'}"]) == 0
    assert stored(tmp_path / "run", "results.json") == results


@pytest.mark.parametrize(
    "words, message",
    [
        ([*SELECT, "--config.checkpoint.best=knn/acuracy"], "knn yields no such result; did you mean knn/accuracy?"),
        ([*SELECT, "--config.checkpoint.best=linear/accuracy"], "'linear' is not evaluated during training"),
        ([*SELECT, "--config.checkpoint.mode=min"], "the best knn/accuracy is the highest"),
        (["--config.checkpoint.best=knn/accuracy"], "checkpoint.best: needs training.evaluate_every"),
        (["--config.training.patience=2"], "training.patience: needs checkpoint.best"),
        ([*SELECT, "--config.training.patience=0"], "must be at least 1 evaluation"),
        ([*SELECT, "--config.training.validation=0"], "training.validation=0.0: must lie in (0, 1)"),
        (
            [*SELECT, "--config.downstream.knn.data=('npz:FOLDER/train.npz','npz:FOLDER/other.npz')"],
            "selects on a part of the training data",
        ),
        (
            [*SELECT, "--config.checkpoint.best=finetune/accuracy", "--config.downstream.finetune.seeds=1"],
            "downstream.finetune: fine-tuning reads all of the run's training data",
        ),
    ],
)
def test_what_cannot_be_selected_by_is_refused_before_training(folder, tmp_path, capsys, words, message):
    words = [word.replace("FOLDER", str(folder)) for word in words]
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'run'}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


TEXT = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.data = dict(train="text:{0}/train.txt", test="text:{0}/test.txt", block=8, batch_size=4)
    c.data.tokenizer = dict(name="characters")
    c.task, c.model = dict(name="next_token"), dict(name="transformer", width=8, depth=1, heads=2)
    c.training, c.optimizer = dict(duration="4 steps", evaluate_every="2 steps", tensorboard=False), dict(lr=1e-3)
    c.checkpoint, c.downstream = dict(best="next_token/loss"), dict(next_token=dict())
    return c
"""


def test_text_is_selected_on_its_end_by_the_lowest_loss(tmp_path):
    (tmp_path / "train.txt").write_text("".join(f"line {i} of the text\n" for i in range(100)))
    (tmp_path / "test.txt").write_text("a zebra that only the test text holds\n" * 20)
    (tmp_path / "config.py").write_text(TEXT.format(tmp_path))
    config = configs.load(str(tmp_path / "config.py"))
    parts = runs.check_selection(runs.prepare(config), runs.Workdir(tmp_path / "run"))
    assert parts.checkpoint.mode == "min"
    whole, kept, held = (
        d.source.tokens for d in (parts.dataset("train", True), parts.part("train", True), parts.part("validation", False))
    )
    assert abs(len(held) / len(whole) - 0.1) < 0.02
    np.testing.assert_array_equal(np.concatenate([kept, held])[: len(whole)], whole)
    assert parts.part("train", True).info.tokenizer.size == parts.info.tokenizer.size
    config.data.test = None
    with pytest.raises(UserError, match="needs data.test, because the end of data.train is used as test text without it"):
        runs.prepare(config)
