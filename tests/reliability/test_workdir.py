"""Files of a work directory that a stranger has changed, and places that cannot be written: one line, nothing touched."""

import os

import pytest
from ml_collections import ConfigDict

from ssl_jax import cli
from ssl_jax.errors import UserError
from ssl_jax.workdir import Workdir


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "null", '{"config": 3}', '{"config": {', "\x00\xff"])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match="config.json") as error:
        Workdir(tmp_path).check(ConfigDict(dict(seed=0)))
    assert "\n" not in str(error.value) and sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("content", ["", "[1]", "trained"])
def test_a_status_that_is_none(tmp_path, content):
    (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match="status.json.*another --workdir"):
        Workdir(tmp_path).status()


def test_the_difference_is_shown(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"seed": 0, "optimizer": {"lr": 0.1}, "mesh": {"data": 1}}}')
    new = dict(seed=0, optimizer=dict(lr=0.1), mesh=dict(data=8))
    Workdir(tmp_path).check(ConfigDict(new))  # another mesh may continue
    with pytest.raises(UserError, match=r"optimizer.lr: 0.1 there, 0.2 here\); take another --workdir"):
        Workdir(tmp_path).check(ConfigDict(dict(new, optimizer=dict(lr=0.2))))


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
