"""`tfds:` reads and writes ArrayRecord, and never needs TensorFlow."""

import numpy as np
import pytest
from PIL import Image

from ssl_jax.errors import UserError

pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")

CODE = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from ssl_jax import randomness
from ssl_jax.data import build
from ssl_jax.data.sources import tfds
from ssl_jax.data.pipeline import Stream, eval_batches
from ssl_jax.data.sources import load_source
from ssl_jax.data.sources.arrays import Arrays

root = {root!r}
generator = np.random.default_rng(0)
label = np.arange(96) % 3
tint = 120 * (np.arange(3) == label[:, None])[:, None, None]
image = (generator.integers(0, 100, (96, 8, 8, 3)) + tint).astype(np.uint8)
source = Arrays("made", {{"image": image, "label": label.astype(np.int32)}}, ("a", "b", "c"))
half = Arrays("made", {{name: value[:30] for name, value in source.arrays.items()}}, source.classes)
tfds.write("tints", {{"train": source, "test": half}}, root)

read = load_source("tfds:tints", dir=root)
assert read.classes == ("a", "b", "c") and len(read) == 96 and len(load_source("tfds:tints:test[:50%]", dir=root)) == 15
assert sorted(read.arrays["image"].reshape(96, -1).tolist()) == sorted(image.reshape(96, -1).tolist())  # bit-equal, shuffled
for i in range(96):
    (j,) = np.flatnonzero((image == read.arrays["image"][i]).all((1, 2, 3)))
    assert read.labels()[i] == label[j] == read[i]["label"]

section = dict(train="tfds:tints", test="tfds:tints:test", batch_size=16, dir=root)
train, test = build("images", section, split="train"), build("images", section, split="test", train=False)
assert train.resident and train.info.classes == ("a", "b", "c")
stream = Stream(train, batch_size=16, seed=0)

def loss(w, batch):
    logits = batch["image"].reshape(16, -1) @ w
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

@jax.jit
def update(w, resident, host_batch, step):
    batch = stream.on_device(resident, host_batch, randomness.stream(0, "augment", step))
    return w - 0.01 * jax.grad(loss)(w, batch)

w = jnp.zeros((192, 3))
for step, batch in zip(range(40), stream.iterate(0)):
    w = update(w, stream.resident, batch, step)
right = 0
for batch, mask in eval_batches(test, 16):
    task_batch = test.on_device(batch, None)
    right += int(((task_batch["image"].reshape(16, -1) @ w).argmax(1) == task_batch["label"])[mask].sum())
print("accuracy", right / 30)
assert "tensorflow" not in sys.modules
"""


def test_preparing_reading_and_training_import_no_tensorflow(child, tmp_path):
    assert float(child(CODE.format(root=str(tmp_path))).split()[-1]) > 0.9


def test_files_of_different_sizes_stay_encoded(tmp_path):
    from ssl_jax.data import build
    from ssl_jax.data.sources import load_source, tfds

    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.full((10 + i, 12, 3), 10 * i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
    folder = load_source(f"folder:{tmp_path / 'images'}")
    tfds.write("sizes", {"train": folder}, str(tmp_path))
    source = load_source("tfds:sizes", dir=str(tmp_path))
    assert source.arrays is None and source.labels() is None and isinstance(source[0]["image"], bytes)
    dataset = build("images", dict(train="tfds:sizes", batch_size=2, image_size=8, dir=str(tmp_path), holdout=0.0))
    shown = sorted(int(dataset.example(i, None)["image"].mean()) for i in range(4))
    assert shown == [0, 10, 20, 30] and dataset.placement == "host"


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    from ssl_jax.data import commands
    from ssl_jax.data.sources import load_source

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="run `ssl-jax data prepare tfds:glue/sst2`"):
        load_source("tfds:glue/sst2:train")
    with pytest.raises(UserError, match="expected NAME"):
        load_source("tfds:../../etc")
    with pytest.raises(UserError, match="TFDS knows no such data set"):
        commands.prepare("tfds:no_such_data_set")


def test_commands(tmp_path):
    from ssl_jax.data import commands

    assert "needs no preparation" in commands.prepare("bundled:fashion_mnist/test")
    listed = commands.list_sources(str(tmp_path))
    assert "bundled:fashion_mnist" in listed and "(nothing)" in listed and "folder:DIR" in listed
    text = commands.inspect("bundled:fashion_mnist/test")
    assert "10,000" in text and "Ankle boot" in text and "uint8[28, 28, 1]" in text
    assert "HENRY IV, SECOND PART" in commands.inspect("bundled:shakespeare", 8)
    with pytest.raises(UserError, match="has no example 10000; its 10,000 examples are 0 to 9999"):
        commands.inspect("bundled:fashion_mnist/test", 10_000)
    Image.new("CMYK", (6, 4)).save(tmp_path / "a.jpg")
    assert "JPEG, 6 x 4, CMYK" in commands.inspect(f"folder:{tmp_path}")
