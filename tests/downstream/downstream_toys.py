"""A data set of coloured noise and a task with a fixed two-layer encoder, small enough for every test here."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.pipeline import Dataset
from ssl_jax.data.sources import Source
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.task import DataInfo, Task


class ArraySource(Source):
    def __init__(self, images, labels, classes, name):
        self.images, self.label, self.classes, self.name = images, labels, classes, name
        self.arrays = {"image": images}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return {"image": self.images[i], "label": self.label[i]}

    def labels(self):
        return self.label

    def describe(self, i):
        return f"{self.name}[{i}]"


def dataset(images, labels, classes, name="memory:toy") -> Dataset:
    """u8 images, i32 labels (or None)."""
    arrays = {"image": images} | ({} if labels is None else {"label": labels})

    def on_device(raw, keys):
        return {**raw, "image": (raw["image"].astype(jnp.float32) / 255 - 0.5) / 0.25}

    info = DataInfo(
        {"image": jax.ShapeDtypeStruct(images.shape[1:], jnp.float32)},
        classes,
        (0.5,) * images.shape[-1],
        (0.25,) * images.shape[-1],
    )
    return Dataset(
        info, len(images), lambda i, g: {k: v[i] for k, v in arrays.items()}, ArraySource(images, labels, classes, name),
        resident=arrays, arrays=arrays, on_device=on_device, label_array=labels, placement="device",
    )  # fmt: skip


def blobs(seed=0, train=300, test=101, classes=3, size=8, noise=60.0):
    """Each class is one random image under noise."""
    random = np.random.default_rng(seed)
    centres = random.uniform(60, 190, (classes, size, size, 1))

    def split(count, name):
        labels = (np.arange(count) % classes).astype(np.int32)
        images = centres[labels] + noise * random.standard_normal((count, size, size, 1))
        return dataset(
            np.clip(images, 0, 255).astype(np.uint8), labels, tuple(f"class {i}" for i in range(classes)), f"memory:{name}"
        )

    return EvaluationData(split(train, "train"), split(test, "test"))


class ToyTask(Task):
    name, data = "toy", "images"

    def init(self, key, batch):
        size = int(np.prod(batch["image"].shape[1:]))
        return {"kernel": jax.random.normal(key, (size, 12)) / size**0.5}

    def features(self, params, batch):
        x = batch["image"].reshape(len(batch["image"]), -1)
        tokens = jnp.tanh(x.reshape(len(x), 2, -1) @ params["kernel"].reshape(2, -1, 12)[0])
        return {"mean": jnp.tanh(x @ params["kernel"]), "tokens": tokens, "cls": tokens[:, 0]}


def toy_params(data, seed=0):
    return ToyTask().init(jax.random.key(seed), {"image": jnp.zeros((1, *data.train.info.shapes["image"].shape))})
