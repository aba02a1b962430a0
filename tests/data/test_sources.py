"""Sources: what a URI opens, and what a user is told when it does not."""

import gzip
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.pipeline import Stream, eval_batches
from ssl_jax.data.sources import load_source
from ssl_jax.data.sources.bundled import read_idx
from ssl_jax.errors import UserError


def error_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Bundled ------------------------------------------------------------------------------------------------------------


def test_fashion_mnist_is_whole():
    train, test = load_source("bundled:fashion_mnist"), load_source("bundled:fashion_mnist/test")
    assert train.arrays["image"].shape == (60_000, 28, 28, 1) and test.arrays["image"].shape == (10_000, 28, 28, 1)
    assert np.bincount(train.labels()).tolist() == [6000] * 10 and np.bincount(test.labels()).tolist() == [1000] * 10
    assert train.classes[9] == "Ankle boot" and train[0]["label"] == 9
    # published statistics of the training pixels
    values = train.arrays["image"][::7] / 255.0
    assert abs(values.mean() - 0.2860) < 2e-3 and abs(values.std() - 0.3530) < 2e-3


def test_idx_files_are_checked(tmp_path):
    path = tmp_path / "x.gz"
    header = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big")
    path.write_bytes(gzip.compress(header + bytes(range(6))))
    np.testing.assert_array_equal(read_idx(path), np.arange(6).reshape(2, 3))
    path.write_bytes(gzip.compress(header + bytes(range(5))))
    assert "truncated (17 of 18 bytes)" in error_of(lambda: read_idx(path))


def test_shakespeare_splits_every_work_at_its_tail():
    train, test, whole = (load_source(f"bundled:shakespeare/{split}") for split in ("train", "test", "all"))
    assert len(train) == len(test) == len(whole) == 42
    total = 0
    for one, other, both in zip(train, test, whole, strict=True):
        assert one["text"] + other["text"] == both["text"] and one["title"] == both["title"]
        assert abs(len(other["text"]) - len(both["text"]) / 10) < 100
        assert both["text"].isascii() and one["text"].endswith("\n")
        total += len(both["text"])
    assert 5_000_000 < total < 5_100_000
    assert any("To be, or not to be,--that is the question:" in work["text"] for work in whole)
    assert not any("gutenberg" in work["text"].lower() or "milton" in work["title"].lower() for work in whole)


# Names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("bundeld:fashion_mnist", "did you mean bundled?"),
        ("bundled:fashion-mnist", "did you mean fashion_mnist?"),
        ("bundled:fashion_mnist/val", "no split 'val'; it has train and test"),
        ("fashion_mnist", "did you mean bundled:fashion_mnist?"),
        ("photos", "write SCHEME:NAME"),
        ("npz:", "the name after"),
        ("tfds:cifar10", "ssl-jax data prepare tfds:cifar10"),
    ],
)
def test_a_wrong_uri_names_its_mend(uri, told, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    message = error_of(lambda: load_source(uri))
    assert uri.split(":")[0] in message and told in message


def test_a_wrong_path_names_the_nearest(tmp_path):
    (tmp_path / "flowers").mkdir()
    (tmp_path / "train.npz").write_bytes(b"")
    assert f"did you mean {tmp_path / 'flowers'}?" in error_of(lambda: load_source(f"folder:{tmp_path / 'flower'}"))
    assert f"did you mean {tmp_path / 'train.npz'}?" in error_of(lambda: load_source(f"npz:{tmp_path / 'trian.npz'}"))
    assert "expected a folder" in error_of(lambda: load_source(f"folder:{tmp_path / 'train.npz'}"))
    assert f"did you mean folder:{tmp_path}?" in error_of(lambda: load_source(str(tmp_path)))


# npz ----------------------------------------------------------------------------------------------------------------


def save(tmp_path, **arrays) -> str:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_takes_the_usual_names(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
    source = load_source(save(tmp_path, x=images, y=np.array([[2], [0], [1], [2]]), classes=np.array(["a", "b", "c"])))
    np.testing.assert_array_equal(source.arrays["image"], images[..., None])
    assert source.labels().tolist() == [2, 0, 1, 2] and source.classes == ("a", "b", "c")
    assert load_source(save(tmp_path, image=images)).labels() is None


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        (dict(image=np.zeros((4, 3, 8, 8), np.uint8)), "move the channels last"),
        (dict(image=np.full((4, 8, 8, 3), 4095)), "int64 with values from 4095 to 4095; expected 0 to 255"),
        (dict(image=np.full((4, 8, 8, 3), 2.0)), "a value of example 0 is 2; expected uint8 or floats in [0, 1]"),
        (dict(image=np.array([0.5, 0.5, np.nan, 0.5]).reshape(4, 1, 1, 1)), "a value of example 2 is nan"),
        (dict(image=np.zeros((4, 8, 8), np.uint8), label=np.arange(3)), "differ in length"),
        (dict(image=np.zeros((2, 8, 8), np.uint8), label=np.array([0, -2])), "example 1 has label -2"),
        (dict(image=np.zeros((2, 8, 8), np.uint8), label=np.array([0.5, 1])), "expected whole numbers"),
        (
            dict(image=np.zeros((2, 8, 8), np.uint8), label=np.array([0, 2]), classes=np.array(["a", "b"])),
            "label 2 has no name",
        ),
        (dict(image=np.zeros((0, 8, 8), np.uint8)), "holds no examples"),
        (dict(image=np.uint8(3)), "single number"),
    ],
)
def test_npz_arrays_are_checked(tmp_path, arrays, told):
    uri = save(tmp_path, **arrays)
    assert told in error_of(lambda: load_source(uri))


def test_npz_files_that_are_none(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    assert "is not an .npz file" in error_of(lambda: load_source(f"npz:{tmp_path / 'a.npz'}"))
    uri = save(tmp_path, text=np.array(["a", "b"]))
    assert "contains no images" in error_of(lambda: build("images", dict(train=uri, batch_size=1)))


# Folders ------------------------------------------------------------------------------------------------------------

RED = (200, 30, 40)


def folder_of_modes(root):
    """The same picture, left half red and right half white, in every way a file can hold it."""
    root.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (32, 16), "white")
    image.paste(RED, (0, 0, 16, 16))
    image.save(root / "rgb.png")
    image.convert("L").save(root / "grey.png")
    image.convert("P", palette=Image.Palette.ADAPTIVE).save(root / "palette.png")
    image.convert("CMYK").save(root / "cmyk.jpg", quality=98)
    image.save(root / "lossless.webp", lossless=True)
    image.save(root / "plain.bmp")
    image.save(root / "animation.gif", save_all=True, append_images=[Image.new("RGB", (32, 16), "blue")])
    clear = image.convert("RGBA")
    clear.paste((0, 0, 0, 0), (16, 0, 32, 16))
    clear.save(root / "rgba.png")
    palette = clear.convert("P")
    palette.info["transparency"] = palette.getpixel((31, 0))
    palette.save(root / "palette_clear.png", transparency=palette.getpixel((31, 0)))
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(root / "grey16.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn right by 90 degrees to see it
    image.rotate(90, expand=True).save(root / "turned.jpg", quality=98, exif=exif)
    return root


def test_every_mode_of_image_shows_the_same_picture(tmp_path):
    root = folder_of_modes(tmp_path / "images")
    (root / ".hidden.png").write_bytes(b"not an image")
    (root / "notes.txt").write_text("not an image")
    dataset = build("images", dict(train=f"folder:{root}", batch_size=4, image_size=(16, 32), holdout=0.0), train=False)
    assert dataset.size == 11 and dataset.labels() is None and "label" not in dataset.info.shapes
    for index in range(dataset.size):
        name = dataset.source.files[index]
        image = dataset.example(index, None)["image"].astype(int)
        assert image.shape == (16, 32, 3)
        left = RED if "grey" not in name else (Image.new("RGB", (1, 1), RED).convert("L").getpixel((0, 0)),) * 3
        tolerance = 25 if name.endswith("jpg") or "palette" in name else 0
        np.testing.assert_allclose(image[8, 6], left, atol=tolerance, err_msg=name)
        np.testing.assert_allclose(image[8, 26], 255, atol=4 if tolerance else 0, err_msg=name)
    grey = build("images", dict(train=f"folder:{root}", batch_size=4, image_size=16, channels=1), train=False)
    assert grey.example(0, None)["image"].shape == (16, 16, 1)


def test_class_folders_give_labels(tmp_path):
    for name in ("cat", "dog", "cat/kittens", ".git", "nothing"):
        folder_of_modes(tmp_path / name) if name != "nothing" else (tmp_path / name).mkdir()
    source = load_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog") and np.bincount(source.labels()).tolist() == [22, 11]
    assert all(file.startswith(source.classes[label]) for file, label in zip(source.files, source.labels(), strict=True))
    Image.new("RGB", (4, 4)).save(tmp_path / "stray.png")
    message = error_of(lambda: load_source(f"folder:{tmp_path}/"))
    assert "stray.png" in message and "beside class folders" in message


def test_empty_folder_and_missing_size(tmp_path):
    assert "contains no image" in error_of(lambda: load_source(f"folder:{tmp_path}"))
    folder_of_modes(tmp_path / "images")
    assert "image_size" in error_of(lambda: build("images", dict(train=f"folder:{tmp_path / 'images'}", batch_size=2)))


# Bad examples -------------------------------------------------------------------------------------------------------


def encoded(kind: str, **options) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def broken(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "2.jpg").write_bytes(encoded("JPEG")[:700])
    return dict(train=f"folder:{tmp_path}", batch_size=6, image_size=16, holdout=0.0, normalize="half")


@pytest.mark.parametrize(
    ("kind", "keep", "told"),
    [
        ("JPEG", 700, "is truncated (it breaks off after 700 bytes"),
        ("PNG", 900, "is truncated (it breaks off after 900 bytes"),
        ("WEBP", 500, "is truncated (500 of "),
        ("BMP", 1000, "is truncated (1,000 of 4,854 bytes)"),
        ("PNG", 0, "is empty (0 bytes)"),
    ],
)
def test_a_truncated_image_is_named(tmp_path, kind, keep, told):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(kind)[:keep])
    dataset = build("images", dict(train=f"folder:{tmp_path}", batch_size=1, image_size=16, normalize=None, holdout=0.0))
    message = error_of(lambda: dataset.read(0, None))
    assert message.startswith(f"folder:{tmp_path}: {path} {told}") and 'data.on_bad_example="skip"' in message


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("<html>404</html>")
    dataset = build("images", dict(train=f"folder:{tmp_path}", batch_size=1, image_size=16, normalize=None, holdout=0.0))
    assert "is not an image" in error_of(lambda: dataset.read(0, None))


def test_bad_examples_stop_the_stream_or_are_skipped_and_counted(broken):
    stopping = Stream(build("images", broken), batch_size=6, seed=0)
    assert "2.jpg is truncated" in error_of(lambda: next(stopping.iterate(0)))
    dataset = build("images", broken | dict(on_bad_example="skip"))
    stream = Stream(dataset, batch_size=6, seed=0)
    batches = list(itertools.islice(stream.iterate(0), 3))
    assert dataset.skipped() == 1
    bad, next_one = (int(np.argmax(batches[0]["index"] == i)) for i in (2, 3))
    np.testing.assert_array_equal(batches[0]["image"][bad], batches[0]["image"][next_one])
    for batch in batches:
        np.testing.assert_array_equal(batch["bad"], batch["index"] == 2)
    assert np.array_equal(stream.on_device({}, batches[0], None)["bad"], batches[0]["bad"])
    again = Stream(build("images", broken | dict(on_bad_example="skip")), batch_size=6, seed=0)
    np.testing.assert_array_equal(again.host_batch(2)["image"], batches[2]["image"])
    masks = np.concatenate([mask for _, mask in eval_batches(dataset, 4)])
    assert masks.tolist() == [True, True, False, True, True, True, False, False]


def test_what_worker_processes_skip_is_counted(broken):
    dataset = build("images", broken | dict(on_bad_example="skip", workers=1))
    next(Stream(dataset, batch_size=6, seed=0).iterate(0))
    assert dataset.skipped() == 1


def test_a_source_without_one_good_example_says_so(tmp_path):
    (tmp_path / "a.png").write_text("no")
    keys = dict(train=f"folder:{tmp_path}", batch_size=1, image_size=16, on_bad_example="skip", holdout=0.0)
    assert "none of its" in error_of(lambda: build("images", keys | dict(normalize=None)).read(0, None))
    assert "none of its" in error_of(lambda: build("images", keys))
