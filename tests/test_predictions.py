"""Predictions: the same from a source, from PIL images, paths, arrays and lists, and in every kind of file."""

import csv
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import ssl_jax
from ssl_jax import cli, predictions
from ssl_jax.api import Pretrained
from ssl_jax.data.images.settings import eval_crop
from ssl_jax.data.text.squad import squad
from ssl_jax.data.text.supervised import labelled_text, parallel_text
from ssl_jax.downstream.supervised.question_answering import QuestionAnswering
from ssl_jax.downstream.supervised.text_classification import TextClassification
from ssl_jax.downstream.supervised.translation import Translation
from ssl_jax.errors import UserError
from ssl_jax.interop.convert import exported
from tests.downstream import text_toys as toys
from tests.interop.interop_toys import params_of, task_of, write
from tests.keys import toy_key

CONTEXT = "ab cd ef gh ab cd"


@pytest.fixture
def classifier(tmp_path):
    """A directory of a classifier of 6 x 8 images."""
    task = task_of("ViTForImageClassification")
    _, theirs, tensors = exported(task, params_of(task))
    return f"hf:{write(tmp_path / 'hf', theirs, tensors)}"


def predict(workdir, data, to):
    return cli.main(["predict", f"--workdir={workdir}", f"--data={data}", f"--to={to}"])


def test_images_as_files_pil_images_and_arrays_give_the_same(classifier, tmp_path, capsys):
    """Of any size, one or several, in the command and in Python, csv, jsonl and npz."""
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 20, 3)).astype(np.uint8)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in zip("bca", images, strict=True):
        Image.fromarray(image).save(folder / f"{name}.png")
    model = ssl_jax.load(classifier)
    wanted = model.predict(images)
    assert [sum(row["probabilities"].values()) for row in wanted] == pytest.approx([1, 1, 1])
    files = [folder / "b.png", str(folder / "c.png"), folder / "a.png"]
    for given in (list(images), files, [Image.open(file) for file in files], [images[0], files[1], Image.open(files[2])]):
        assert model.predict(given) == wanted
    assert model.predict(images[1]) == model.predict(files[1]) == [wanted[1]]
    features = model.features(files, batch_size=2)["pooled"]
    np.testing.assert_allclose(features, model.features(images)["pooled"], atol=1e-5)
    wanted = [wanted[2], wanted[0], wanted[1]]  # a, b, c
    for suffix in ("csv", "jsonl", "npz"):
        assert predict(classifier, f"folder:{folder}", tmp_path / f"out.{suffix}") == 0
    assert "3 rows of index, name, prediction, probability" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["name"].rsplit("/")[-1] for row in rows] == ["a.png", "b.png", "c.png"]
    table = list(csv.DictReader((tmp_path / "out.csv").open()))
    arrays = np.load(tmp_path / "out.npz")
    for i, row in enumerate(wanted):
        assert rows[i]["prediction"] == table[i]["prediction"] == arrays["prediction"][i] == row["prediction"]
        expected = list(row["probabilities"].values())
        np.testing.assert_allclose(list(rows[i]["probabilities"].values()), expected, rtol=1e-3)
        np.testing.assert_allclose(
            [float(table[i][name]) for name in row["probabilities"]], arrays["probabilities"][i], rtol=1e-4
        )


def test_an_exported_model_crops_images_as_its_run_evaluates_them(classifier, tmp_path):
    """From a directory to a run and back, in Python as in the command. A run's own crop is that of its kind of data."""
    image = np.random.default_rng(0).integers(0, 256, (18, 40, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    directory, again = pathlib.Path(classifier.removeprefix("hf:")), tmp_path / "again"
    normalised = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    found = []
    for crop in ({}, {"crop_pct": 0.5}):
        (directory / "preprocessor_config.json").write_text(json.dumps(normalised | crop))
        found.append(ssl_jax.load(classifier).predict(image)[0]["probabilities"])
    assert found[0] != found[1]
    for source, target in ((classifier, tmp_path / "run"), (tmp_path / "run", f"hf:{again}")):
        assert cli.main(["convert", f"--from={source}", f"--to={target}"]) == 0
        assert ssl_jax.load(target).predict(image)[0]["probabilities"] == pytest.approx(found[1])
    assert json.loads((again / "preprocessor_config.json").read_text())["crop_pct"] == 0.5
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "photos" / "a.png")
    assert predict(f"hf:{again}", f"folder:{tmp_path / 'photos'}", tmp_path / "out.jsonl") == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["probabilities"] == pytest.approx(found[1], rel=1e-3)
    crop = lambda kind, **section: eval_crop(section, kind, ssl_jax.load(classifier).info)
    assert (crop("images", train="a"), crop("pairs", train="a"), crop("images", eval_crop=0.9)) == (0.875, 1.0, 0.9)


def test_the_checkpoint_that_a_run_selected_is_exported(classifier, tmp_path, monkeypatch, capsys):
    assert cli.main(["convert", f"--from={classifier}", f"--to={tmp_path / 'run'}"]) == 0
    monkeypatch.setattr("ssl_jax.runs.selected_checkpoint", lambda workdir: 7)  # there is one, of step 0
    assert cli.main(["convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'out'}"]) == 2
    assert "7" in capsys.readouterr().err.splitlines()[-1].replace(str(tmp_path), "") and not (tmp_path / "out").exists()


def test_what_cannot_be_read_is_named(classifier, tmp_path, capsys):
    model = ssl_jax.load(classifier)
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="image: .*x.png"):
        model.predict(str(tmp_path / "x.png"))
    with pytest.raises(UserError, match="there.png: No such file"):
        model.predict(["there.png"])
    with pytest.raises(UserError, match="image: number 1 has shape"):
        model.predict([np.zeros((4, 4, 3)), np.zeros((4, 4, 7))])
    assert predict(classifier, "folder:nowhere", tmp_path / "out.txt") == 2
    assert "--to=" in capsys.readouterr().err
    with pytest.raises(UserError, match="of the task image_encoder predicts no labels; use one of classification"):
        task = task_of("ViTModel")
        Pretrained(task, params_of(task), task.info).predict([np.zeros((6, 8, 3))])


def started(cls, name, data, **model):
    config = ConfigDict(dict(task=dict(name=name), model=toys.MODEL | model, training={}))
    task = cls.from_config(config, data.info)
    return Pretrained(task, jax.jit(task.init)(toy_key(0), toys.batch_of(data, 2)), data.info)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """(model, source) -> the rows that the command writes of it."""

    def run(model, data):
        parts = model.task, model.params, model.info
        monkeypatch.setattr(predictions, "restore_task", lambda *_: parts)
        assert predict("hf:x", data, tmp_path / "out.jsonl") == 0
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    return run


def test_texts(tmp_path, command):
    train = labelled_text(toys.section(toys.letters(tmp_path / "letters.tsv")), split="train", train=True)
    model = started(TextClassification, "text_classification", train)
    (tmp_path / "lines.txt").write_text("ab x\nz\n")
    rows, expected = command(model, f"text:{tmp_path / 'lines.txt'}"), model.predict(["ab x", "z"])
    assert [row["name"] for row in rows] == ["line 1", "line 2"] and [row["index"] for row in rows] == [0, 1]
    for row, other in zip(rows, expected, strict=True):
        np.testing.assert_allclose(list(row["probabilities"].values()), list(other["probabilities"].values()), rtol=1e-4)
    assert model.predict("z")[0]["prediction"] == expected[1]["prediction"]
    assert len(model.predict([("ab", "x"), ("b", "z")])) == 2
    with pytest.raises(UserError, match="text: number 1 is not a pair"):
        model.predict([("ab", "x"), "z"])


def test_answers_are_those_of_the_evaluator(tmp_path, command):
    answer = dict(text="ef", answer_start=6)
    questions = [dict(id=f"q{i}", question=text, answers=[answer]) for i, text in enumerate(("what", "who"))]
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]}))
    section = dict(
        train=f"squad:{file}", test=f"squad:{file}", tokenizer=toys.BYTES, max_length=16, doc_stride=3, max_query_length=6
    )
    data = squad(section, split="test", train=False)
    model = started(QuestionAnswering, "question_answering", data)
    rows = command(model, f"squad:{file}")
    assert [row["name"] for row in rows] == ["q0", "q1"] and rows[0]["question"] == "what"
    assert all(row["prediction"] in CONTEXT and 0 < row["probability"] <= 1 for row in rows)
    found = model.predict([("what", CONTEXT), dict(question="who", context=CONTEXT)])
    assert [row["prediction"] for row in found] == [row["prediction"] for row in rows]
    assert model.predict(("what", CONTEXT))[0]["prediction"] == found[0]["prediction"]
    with pytest.raises(UserError, match="number 0 is 'what', expected"):
        model.predict(["what"])


def test_translations(tmp_path, command):
    (tmp_path / "s").write_text("ab\nba\n")
    (tmp_path / "t").write_text("xy\nyx\n")
    uri = f"parallel:{tmp_path / 's'},{tmp_path / 't'}"
    data = parallel_text(
        dict(train=uri, test=uri, tokenizer=toys.BYTES, max_source_length=6, max_target_length=5), split="test", train=False
    )
    model = started(Translation, "translation", data, tied=True)
    rows = command(model, uri)
    assert [row["source"] for row in rows] == ["ab", "ba"]
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in model.predict(["ab", "ba"])]
    assert command(model, f"text:{tmp_path / 's'}")[1]["prediction"] == model.predict("ba")[0]["prediction"]
