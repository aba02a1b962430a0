"""What a work directory records of its data, and that other data are refused."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.sources import _load, files, load_source
from ssl_jax.errors import UserError
from ssl_jax.workdir import Workdir


def made_from(uri: str) -> dict:
    _load.cache_clear()  # as another process
    section = dict(train=uri, batch_size=2, image_size=4, normalize=None)
    return {split: build("images", section, split=split, train=False).fingerprint() for split in ("train", "test")}


def picture(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), level).save(path)


def recorded(tmp_path, data: dict) -> Workdir:
    workdir = Workdir(tmp_path / "run")
    workdir.path.mkdir()
    workdir.write("data.json", data)
    return workdir


def test_a_folder_that_changed_is_refused_in_its_old_work_directory(tmp_path):
    uri = f"folder:{tmp_path / 'photos'}"
    for i in range(20):
        picture(tmp_path / "photos" / f"class{i % 2}" / f"{i}.png")
    workdir = recorded(tmp_path, made_from(uri))
    workdir.check_data(made_from(uri))
    picture(tmp_path / "photos" / "class0" / "new.png")
    with pytest.raises(UserError, match=r"run: the examples of folder:.*photos \(train\) have changed .* \(then 20, now 21\)"):
        workdir.check_data(made_from(uri))
    (tmp_path / "photos" / "class0" / "0.png").unlink()  # as many, but others
    with pytest.raises(UserError, match="others of the same number, 20.; restore them, or use another --workdir"):
        workdir.check_data(made_from(uri))


@pytest.mark.parametrize("change", ["pixel", "label", "order"])
def test_arrays_are_known_by_their_content(tmp_path, change):
    images, labels = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4), np.arange(20) % 2
    save = lambda name, images, labels: np.savez(tmp_path / name, image=images, label=labels) or f"npz:{tmp_path / name}"
    workdir = recorded(tmp_path, made_from(save("a.npz", images, labels)))
    workdir.check_data(made_from(save("b.npz", images, labels)))  # the same data under another name
    if change == "pixel":
        images = images + (np.arange(20 * 16).reshape(images.shape) == 7)
    labels = labels ^ (np.arange(20) == 3) if change == "label" else labels
    order = np.roll(np.arange(20), 2) if change == "order" else np.arange(20)
    with pytest.raises(UserError, match="have changed since the run was started"):
        workdir.check_data(made_from(save("b.npz", images[order].astype(np.uint8), labels[order])))


@pytest.mark.parametrize("kind", ["folder", "csv", "tar", "parquet"])
def test_a_picture_that_is_replaced_under_its_name_is_noticed(tmp_path, kind):
    """Whatever its size and date; a copy of the whole is the same data set."""
    from tests.data.test_defects import good, write

    digest = lambda uri: _load.cache_clear() or load_source(uri).fingerprint()
    examples = good("ant", "bee", each=3)
    uri = write(kind, tmp_path / "first" / "data", examples)
    first = digest(uri)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.*"):
        os.utime(file, (1, 1))
    assert digest(uri.replace("/first/", "/copy/")) == first
    other = write(kind, tmp_path / "other" / "data", [("dog", "good"), *examples[1:]])
    if kind == "folder":
        (tmp_path / "other/data/dog/000.png").rename(tmp_path / "other/data/ant/000.png")
        (tmp_path / "other/data/dog").rmdir()
    assert digest(other) != first


def test_files_beyond_the_sample_are_known_by_their_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SAMPLED", 2)
    paths = [tmp_path / f"{i}.bin" for i in range(6)]
    for path in paths:
        path.write_bytes(b"abc")
    before = list(files.content_samples([*paths, tmp_path / "none"]))
    paths[0].write_bytes(b"abd"), paths[1].write_bytes(b"abd"), paths[2].write_bytes(b"abcd")
    after = list(files.content_samples([*paths, tmp_path / "none"]))
    assert [a != b for a, b in zip(before, after, strict=True)] == [True, False, True, False, False, False, False]
