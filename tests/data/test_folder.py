"""`folder:`: which files are read, that links are followed, and that what is not read is counted."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.images import decode
from ssl_jax.data.inspection import inspect
from ssl_jax.data.sources import BadExample, load_source
from ssl_jax.data.sources.folder import Folder, suffixes
from ssl_jax.errors import UserError


def images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        Image.new("RGB", (6, 4), (10 * i, 0, 0)).save(folder / name)


def test_every_format_that_pillow_decodes_is_read(tmp_path):
    """Each suffix that this Pillow both writes and reads back; a class of .tif files was once no class at all."""
    Image.init()
    written = []
    for suffix in sorted(suffixes()):
        kind = Image.registered_extensions()[suffix]
        for mode in ("RGB", "L", "1", "P"):
            try:
                (tmp_path / "all").mkdir(exist_ok=True)
                Image.new(mode, (32, 32)).save(tmp_path / "all" / f"x{suffix}", kind)
                written.append(f"x{suffix}")
                break
            except (OSError, ValueError, KeyError, SystemError):
                (tmp_path / "all" / f"x{suffix}").unlink(missing_ok=True)
    source = Folder(str(tmp_path / "all"))
    assert source.files == sorted(written) and {"x.tif", "x.ppm", "x.tga", "x.ico", "x.jp2"} <= set(written)
    for i in range(len(source)):
        assert decode.decode(source[i]["image"], 3).mode == "RGB", source.files[i]


def test_what_is_not_read_is_counted(tmp_path):
    images(tmp_path / "cat", "a.png", "B.PNG", ".hidden.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "LICENSE").write_text("no image")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "movie.mpg").write_bytes(b"\0" * 10)
    os.symlink("/nowhere/at/all", tmp_path / "emu")
    source = Folder(str(tmp_path))
    assert source.files == ["cat/B.PNG", "cat/a.png"] and source.classes == ("cat",)
    assert source.remarks() == (
        "3 files not read, of a kind that Pillow does not decode (without a suffix 1, .txt 1, .mpg 1)",
        "1 link to nothing (emu)",
        "1 class folder without images (dog)",
    )
    section = dict(train=f"folder:{tmp_path}", test=f"folder:{tmp_path}", batch_size=1, image_size=4, normalize=None)
    assert f"folder:{tmp_path}: 1 class folder without images (dog)" in build("images", section).notes()
    assert "note      1 link to nothing (emu)" in inspect(f"folder:{tmp_path}")
    shutil.rmtree(tmp_path / "cat")
    with pytest.raises(UserError, match="contains no image, neither directly nor in class folders .*1 link to nothing"):
        Folder(str(tmp_path))


def test_links_are_followed_and_loops_are_not(tmp_path):
    images(tmp_path / "store" / "dogs", "1.png", "2.png")
    images(tmp_path / "data" / "cat" / "kittens", "3.png")
    (tmp_path / "data" / "dog").mkdir()
    os.symlink(tmp_path / "store" / "dogs", tmp_path / "data" / "dog" / "all")
    os.symlink(tmp_path / "store" / "dogs", tmp_path / "data" / "fox")  # a folder may be linked from several places
    os.symlink(tmp_path / "data", tmp_path / "data" / "cat" / "kittens" / "up")
    os.symlink("itself", tmp_path / "data" / "cat" / "itself")
    source = Folder(str(tmp_path / "data"))
    assert source.files == ["cat/kittens/3.png", "dog/all/1.png", "dog/all/2.png", "fox/1.png", "fox/2.png"]
    assert source.labels().tolist() == [0, 1, 1, 2, 2]
    assert source.remarks() == (
        "1 link to nothing (cat/itself)",
        "1 link not followed, back to a folder above (cat/kittens/up)",
    )


def test_a_file_that_cannot_be_opened_is_a_bad_example(tmp_path):
    images(tmp_path / "cat", "a.png")
    os.symlink("/nowhere/gone.png", tmp_path / "cat" / "b.png")
    os.symlink("c.png", tmp_path / "cat" / "c.png")
    source = Folder(str(tmp_path))
    assert len(source) == 3
    (tmp_path / "cat" / "a.png").unlink()
    for index, what in ((0, "cannot be read (No such file"), (1, "is a link to a file that does not exist"), (2, "is a link")):
        with pytest.raises(BadExample) as caught:
            source[index]
        assert what in str(caught.value) and source.files[index] in str(caught.value)


def test_a_folder_of_splits_is_no_folder_of_classes(tmp_path):
    for split in ("train", "val"):
        images(tmp_path / split / "cat", "a.png")
    with pytest.raises(UserError, match="its folders train, val are splits, not classes; use folder:.*/train or folder:.*/val"):
        Folder(str(tmp_path))
    images(tmp_path / "bird", "a.png")
    assert Folder(str(tmp_path)).classes == ("bird", "train", "val")  # the words may be classes too


def test_inspecting_counts_what_cannot_be_decoded(tmp_path):
    images(tmp_path / "cat", *(f"{i}.png" for i in range(4)))
    (tmp_path / "cat" / "2.png").write_bytes(b"GIF89a")
    text = inspect(f"folder:{tmp_path}")
    assert "kind      images, labelled" in text and "sizes     6 x 4 pixels (3 examples read)" in text
    assert f"bad       1 of 4 examples read; the first: folder:{tmp_path}: {tmp_path}/cat/2.png" in text
    assert "0 (cat)" in text and "examples  4" in text
    with pytest.raises(UserError, match="has no example 4; its 4 examples are 0 to 3"):
        inspect(f"folder:{tmp_path}", 4)


def test_a_changed_source_is_read_again(tmp_path):
    images(tmp_path / "cat", "a.png")
    np.savez(tmp_path / "a.npz", image=np.zeros((3, 2, 2), np.uint8))
    assert len(load_source(f"npz:{tmp_path / 'a.npz'}")) == 3
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 2, 2), np.uint8))
    assert len(load_source(f"npz:{tmp_path / 'a.npz'}")) == 4
