"""`parquet:` in the layout of the `datasets` library."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.inspection import inspect
from ssl_jax.data.sources import BadExample, load_source
from ssl_jax.data.sources.text_columns import read_table
from ssl_jax.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, columns: dict, names: list[str] | None = None) -> str:
    """A file as `Dataset.to_parquet` writes it, with class names in its metadata."""
    table = pyarrow.table(columns)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return f"parquet:{path}"


def images(*levels):
    return pyarrow.array([{"bytes": png(level), "path": None} for level in levels])


def test_images_with_class_numbers(tmp_path):
    write(tmp_path / "data" / "train-00000-of-00002.parquet", {"image": images(0, 10, 20), "label": [1, 0, 1]}, ["cat", "dog"])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", {"image": images(30, 40), "label": [0, -1]}, ["cat", "dog"])
    source = load_source(f"parquet:{tmp_path / 'data'}")
    assert source.classes == ("cat", "dog") and source.labels().tolist() == [1, 0, 1, 0, -1]
    assert source[3] == {"image": png(30), "label": 0}
    section = dict(train=source.name, batch_size=2, image_size=4, normalize=None, on_bad_example="skip", holdout=0.0)
    dataset = build("images", section, train=False)
    assert dataset.size == 4 and dataset.skipped() == 1
    assert [int(dataset.example(i, None)["image"][0, 0, 0]) for i in range(4)] == [0, 10, 20, 30]
    copy = pickle.loads(pickle.dumps(source))  # as a worker gets it
    assert copy[4]["image"] == png(40) and "table" not in source.__getstate__()
    assert "images, labelled" in inspect(source.name) and "1 examples without one" in inspect(source.name)


def test_classes_are_matched_by_name(tmp_path):
    train = write(tmp_path / "a.parquet", {"image": images(0, 1), "label": [0, 1]}, ["cat", "dog"])
    test = write(tmp_path / "b.parquet", {"image": images(0, 1), "label": [0, 1]}, ["dog", "cat"])
    section = dict(train=train, test=test, batch_size=2, image_size=4, normalize=None)
    assert build("images", section, split="test", train=False).labels().tolist() == [1, 0]
    named = write(tmp_path / "c.parquet", {"image": images(0, 1, 2), "label": ["dog", None, "emu"]})
    with pytest.raises(UserError, match="class emu does not occur in the training data"):
        build("images", section | dict(test=named), split="test", train=False)


def test_paths_captions_and_missing_images(tmp_path):
    (tmp_path / "0.png").write_bytes(png(0))
    columns = {"file_name": ["0.png", "1.png", None], "caption": [["a", None, " b "], ["c"], []], "class": [7, 8, 7]}
    source = load_source(write(tmp_path / "a.parquet", columns))
    assert source[0] == {"image": png(0), "captions": ("a", "b"), "label": 0} and source.classes == ("7", "8")
    with pytest.raises(BadExample, match="row 1: 1.png cannot be read"):
        source[1]
    with pytest.raises(BadExample, match="row 2 has no image"):
        source[2]
    assert load_source(source.name, columns=dict(image="file_name", label=None)).labels() is None


def test_text(tmp_path):
    uri = write(tmp_path / "a.parquet", {"text": ["one", "two"], "label": [1, 0]}, ["neg", "pos"])
    assert load_source(uri)[0] == {"text": "one", "label": "pos"} and "kind      text" in inspect(uri)
    table = read_table(uri, {"text": "text", "label": "label"})
    assert table.columns == {"text": ("one", "two"), "label": ("pos", "neg")}
    with pytest.raises(UserError, match="the column of images is unknown .columns: 'text', 'label'.; set data.columns.image"):
        build("images", dict(train=uri, batch_size=1, image_size=4))


def test_what_is_wrong_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="a.parquet: is not a readable parquet file"):
        load_source(f"parquet:{tmp_path / 'a.parquet'}")
    with pytest.raises(UserError, match="there is no such file; expected a .parquet"):
        load_source(f"parquet:{tmp_path / 'none'}")
    write(tmp_path / "d" / "0.parquet", {"image": images(0), "label": [0]})
    write(tmp_path / "d" / "1.parquet", {"image": images(0)})
    with pytest.raises(UserError, match="1.parquet has other columns than .*0.parquet"):
        load_source(f"parquet:{tmp_path / 'd'}")
    with pytest.raises(UserError, match="row 0 has label 5, which is not among the 2 classes"):
        load_source(write(tmp_path / "e.parquet", {"image": images(0), "label": [5]}, ["cat", "dog"]))
    with pytest.raises(UserError, match="column 'label' is double, expected one class"):
        load_source(write(tmp_path / "f.parquet", {"image": images(0), "label": np.array([0.5])}))
    with pytest.raises(UserError, match="is empty"):
        load_source(write(tmp_path / "g.parquet", {"image": images(), "label": pyarrow.array([], pyarrow.int64())}))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="needs pyarrow; run pip install pyarrow"):
        load_source(write_name(tmp_path))


def write_name(tmp_path) -> str:
    (tmp_path / "h.parquet").touch()
    return f"parquet:{tmp_path / 'h.parquet'}"
