"""`bundled:NAME[/SPLIT]`: the data sets that ship with the package."""

import gzip
import os
import pathlib
from typing import Any

import numpy as np

from ssl_jax.data.sources import Source, nearest_of, resolve
from ssl_jax.data.sources.arrays import Arrays
from ssl_jax.data.sources.texts import Texts
from ssl_jax.errors import UserError

BUNDLED = {
    "fashion_mnist": "ssl_jax.data.sources.bundled:fashion_mnist",
    "shakespeare": "ssl_jax.data.sources.bundled:shakespeare",
    "emoji": "ssl_jax.data.sources.emoji:emoji",
}

BUNDLED_DIR = pathlib.Path(__file__).parents[1] / "bundled"
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def open_bundled(rest: str, **options: Any) -> Source:
    """Open `bundled:NAME[/SPLIT]`; the split is "train" unless named."""
    name, _, split = rest.partition("/")
    if name not in BUNDLED:
        raise UserError(f"bundled:{rest}: there is no such bundled data set{nearest_of(name, BUNDLED)}")
    return resolve(BUNDLED[name], f"bundled:{rest}")(split or "train", **options)


def check_split(uri: str, split: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    """Raise UserError unless `split` is one of `splits`."""
    if split not in splits:
        raise UserError(f"{uri}/{split}: there is no split {split!r}; it has {' and '.join(splits)}")


def fashion_mnist(split: str, **options: Any) -> Source:
    """Open Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 and 10,000 grey images of 28 x 28, ten classes."""
    check_split("bundled:fashion_mnist", split)
    prefix = {"train": "train", "test": "t10k"}[split]
    root = BUNDLED_DIR / "fashion_mnist"
    images = read_idx(root / f"{prefix}-images-idx3-ubyte.gz")[..., None]
    labels = read_idx(root / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32)
    return Arrays(f"bundled:fashion_mnist/{split}", {"image": images, "label": labels}, FASHION_CLASSES)


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """Read the u8 array of an IDX file, gzipped or not (LeCun's format: magic 0x0000 08 rank, big-endian sizes, bytes)."""
    data = pathlib.Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path}: is not an IDX file of bytes; reinstall the package")
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">i4", rank, offset=4))
    start = 4 + 4 * rank
    if len(data) != start + int(np.prod(shape)):
        raise UserError(f"{path}: is truncated ({len(data):,} of {start + int(np.prod(shape)):,} bytes); reinstall the package")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def shakespeare(split: str, **options: Any) -> Source:
    """Open Shakespeare's plays and poems, one document each: "train" and "test" are the first 90 % and last 10 % of *every*
    work's characters, split at the end of a line, "all" is both. So every work is in both splits.
    """
    import lzma

    check_split("bundled:shakespeare", split, ("train", "test", "all"))
    raw = lzma.decompress((BUNDLED_DIR / "shakespeare" / "works.txt.xz").read_bytes()).decode("utf-8")
    titles, texts = [], []
    for work in raw.split("\x0c")[1:]:  # a form feed, the title, a line end, the text
        title, _, text = work.partition("\n")
        cut = text.index("\n", len(text) * 9 // 10) + 1
        texts.append({"train": text[:cut], "test": text[cut:], "all": text}[split])
        titles.append(title)
    return Texts(f"bundled:shakespeare/{split}", texts, titles)
