"""`ssl-jax data inspect --config=FILE --to=PNG`: training images as the model of a config reads them."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from ssl_jax import randomness, runs
from ssl_jax.errors import UserError
from ssl_jax.task import Images

ROWS = 8  # examples, evenly spaced
COPIES = 3  # augmentations of each
VIEW_COPIES = 4  # copies of a view at most


def preview(config: ConfigDict, to: str) -> int:
    """Write a sheet of training images to `to`: as evaluated, augmented, each view, and masked. Return the number of examples.

    Raise UserError if the config is invalid or its data are not images.
    """
    parts = runs.prepare(config)
    if "image" not in parts.info.shapes:
        raise UserError(f"--to={to}: the data of task.name={config.task.name!r} are not images; omit --to")
    from ssl_jax.reports.panels import image_sheet, write

    panel = sheet(parts)
    path = pathlib.Path(to)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, image_sheet(panel))
    return len(panel.array)


def sheet(parts: runs.Parts) -> Images:
    """Return one row per example: as evaluated, COPIES augmentations, each copy of each view, and masked."""
    train, plain, seed = parts.dataset("train", True), parts.dataset("train", False), parts.config.get("seed", 0)
    index = np.unique(np.linspace(0, train.size - 1, min(ROWS, train.size)).astype(int))
    columns = {"evaluation": plain.on_device(plain.rows(index), None)["image"]}
    batch: dict[str, Any] = {}
    for copy in range(COPIES):
        generators = [np.random.default_rng([seed, copy, int(i)]) for i in index]
        keys = randomness.example_keys(randomness.stream(seed, "augment", copy), jnp.arange(len(index)))
        batch = train.on_device(train.rows(index, generators), keys)
        columns[f"training {copy + 1}"] = batch["image"]
    for name, shape in parts.info.shapes.items():
        if name != "image" and len(shape.shape) == 4:
            for copy in range(min(shape.shape[0], VIEW_COPIES)):
                columns[f"{name} {copy + 1}"] = batch[name][:, copy]
    pixels = {name: unnormalized(np.asarray(images), parts.info) for name, images in columns.items()}
    mask, encoder = getattr(getattr(parts.task, "config", None), "mask", None), getattr(parts.task, "encoder", None)
    if callable(mask) and hasattr(encoder, "grid"):
        hidden = mask(randomness.substream(keys, "mask"), encoder.grid).hidden
        pixels["masked"] = greyed(pixels[f"training {COPIES}"], np.asarray(hidden).reshape(-1, *encoder.grid))
    height, width = max(p.shape[1] for p in pixels.values()), max(p.shape[2] for p in pixels.values())
    return Images(np.stack([centred(p, height, width) for p in pixels.values()], axis=1), tuple(pixels))


def unnormalized(images: Float[np.ndarray, "b h w c"], info: Any) -> Float[np.ndarray, "b h w c"]:
    """Return normalised images as pixels in [0, 1]."""
    return np.clip(images * np.float32(info.std or 1.0) + np.float32(info.mean or 0.0), 0, 1)


def greyed(images: Float[np.ndarray, "b h w c"], hidden: Bool[np.ndarray, "b rows columns"]) -> Float[np.ndarray, "b h w c"]:
    """Return images with their hidden patches grey."""
    _, rows, columns = hidden.shape
    shown = hidden.repeat(images.shape[1] // rows, 1).repeat(images.shape[2] // columns, 2)
    return np.where(shown[..., None], np.float32(0.5), images)


def centred(images: Float[np.ndarray, "b h w c"], height: int, width: int) -> Float[np.ndarray, "b {height} {width} c"]:
    """Return images centred on a white canvas, since views may be smaller than the image."""
    top, left = (height - images.shape[1]) // 2, (width - images.shape[2]) // 2
    canvas = np.ones((len(images), height, width, images.shape[3]), np.float32)
    canvas[:, top : top + images.shape[1], left : left + images.shape[2]] = images
    return canvas
