"""Files of a work directory that a stranger has changed, and places that cannot be written: one line, nothing touched."""

import json
import os

import pytest
from ml_collections import ConfigDict

from ssl_jax import cli
from ssl_jax.errors import UserError
from ssl_jax.resume import begin_anew, check_directory, extended
from ssl_jax.workdir import Workdir


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "null", '{"config": 3}', '{"config": {', "\x00\xff"])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="config.json") as error:
        check_directory(Workdir(tmp_path), ConfigDict(dict(seed=0)))
    assert "\n" not in str(error.value) and sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("content", ["", "[1]", "trained"])
def test_a_status_that_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match="status.json.*another --workdir"):
        Workdir(tmp_path).status()


def test_the_difference_is_shown(tmp_path):
    begun(tmp_path, CONFIG)
    with pytest.raises(UserError) as error:
        check_directory(Workdir(tmp_path), changed("optimizer.lr", 0.2))
    assert "another config (optimizer.lr: 0.1 there, 0.2 here); the steps already taken used it; use another" in str(
        error.value
    )


CONFIG = dict(
    seed=0, task=dict(name="t"), data=dict(train="a", test="b", batch_size=4), model=dict(width=8), mesh=dict(data=1),
    training=dict(duration="10 steps"), optimizer=dict(lr=0.1, schedule="constant"), checkpoint=dict(best="knn/accuracy"),
)  # fmt: skip


def begun(folder, config, step=3):
    """A run of which a checkpoint is saved."""
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / f"checkpoints/{step:08d}").mkdir(parents=True)


def changed(key, value):
    config = ConfigDict(CONFIG)
    section, _, name = key.rpartition(".")
    place = config
    for part in section.split(".") if section else ():
        if part not in place:
            place[part] = ConfigDict()
        place = place[part]
    with config.ignore_type():
        place[name] = value
    return config


@pytest.mark.parametrize(
    "key, value",
    [("mesh.data", 8), ("training.log_every", 7), ("training.tensorboard", False), ("training.wandb", "p"),
     ("training.on_nonfinite", "skip"), ("training.evaluators", ("knn",)), ("training.evaluate_every", "5 steps"),
     ("data.placement", "host"), ("data.workers", 3), ("downstream.knn.k", 3), ("checkpoint.keep", 9),
     ("checkpoint.best", "linear_probe/accuracy"), ("expected", {"knn/accuracy": (0, 1)})],
)  # fmt: skip
def test_what_changes_no_number_of_the_training_may_change(tmp_path, key, value):
    begun(tmp_path, CONFIG)
    check_directory(Workdir(tmp_path), changed(key, value))


@pytest.mark.parametrize(
    "key, value, why",
    [
        ("seed", 1, "drew their random numbers from it"),
        ("optimizer.clip", 1.0, "the steps already taken used it"),
        ("training.ema", 0.9, "the steps already taken used it"),
        ("training.skip_outliers", 3.0, "the steps already taken used it"),
        ("data.batch_size", 8, "the steps already taken read other batches"),
        ("data.test", "c", "`ssl-jax evaluate --data.test=` measures a run on other data"),
        ("model.width", 16, "the saved parameters belong to it"),
        ("task.mask.ratio", 0.5, "the saved parameters were trained by it"),
        ("checkpoint.best", None, "a part of the training data is held out"),
    ],
)
def test_what_may_not_change_says_why(tmp_path, key, value, why):
    begun(tmp_path, CONFIG)
    with pytest.raises(UserError) as error:
        check_directory(Workdir(tmp_path), changed(key, value))
    assert key in str(error.value) and why in str(error.value) and "use another --workdir" in str(error.value)


@pytest.mark.parametrize("schedule", ["constant", "warmup_stable_decay", "warmup_cosine", None])
def test_a_run_may_be_made_longer_where_its_schedule_allows(tmp_path, schedule):
    begun(tmp_path, CONFIG | dict(optimizer=dict(lr=0.1, schedule=schedule)))
    longer = changed("optimizer.schedule", schedule)
    longer.training.duration = "20 steps"
    if schedule in ("constant", "warmup_stable_decay"):
        check_directory(Workdir(tmp_path), longer)
        assert extended(Workdir(tmp_path), longer) is False  # it was not trained to its end yet
        (tmp_path / "status.json").write_text('{"trained": 10, "duration": "10 steps"}')
        assert extended(Workdir(tmp_path), longer)
    else:
        with pytest.raises(UserError, match="spreads over the whole run"):
            check_directory(Workdir(tmp_path), longer)


def test_a_run_of_which_nothing_is_saved_begins_anew_under_any_config(tmp_path):
    begun(tmp_path, CONFIG)
    (tmp_path / "checkpoints/00000003").rmdir()
    (tmp_path / "tokenizer").mkdir()
    new = changed("optimizer.lr", 0.2)
    check_directory(Workdir(tmp_path), new)
    begin_anew(Workdir(tmp_path), ConfigDict(CONFIG))
    assert (tmp_path / "config.json").exists() and (tmp_path / "tokenizer").exists()
    begin_anew(Workdir(tmp_path), new)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("number", [13, 28, 30])
def test_a_file_that_cannot_be_written_is_told_in_one_line_wherever_it_comes_up(monkeypatch, capsys, number):
    def fails(arguments):
        raise OSError(number, os.strerror(number), "runs/a/report.html")

    monkeypatch.setattr(cli, "_load_config", lambda *_: None)
    monkeypatch.setattr(cli, "_run", fails)
    assert cli.main(["run", "--config=c.py", "--workdir=w"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"ssl-jax: runs/a/report.html: {os.strerror(number)}; make room") and line.count("\n") == 1


def test_another_failure_is_not_hidden(monkeypatch):
    def fails(arguments):
        raise OSError(5, os.strerror(5), "runs/a/report.html")

    monkeypatch.setattr(cli, "_load_config", lambda *_: None)
    monkeypatch.setattr(cli, "_run", fails)
    with pytest.raises(OSError):
        cli.main(["run", "--config=c.py", "--workdir=w"])
