"""`bundled:emoji`: pictures of emoji (Noto) with their names and keywords (CLDR)."""

import functools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ssl_jax.data.sources import Source
from ssl_jax.data.sources.bundled import BUNDLED_DIR, check_split
from ssl_jax.errors import UserError

SIDE = 64
VALIDATION_EVERY = 7


@functools.cache
def records() -> tuple[dict[str, Any], ...]:
    """Return each emoji's name, keywords, group, subgroup, family, split, image (its number) and tones, in CLDR's order."""
    return tuple(json.loads((BUNDLED_DIR / "emoji" / "emoji.json").read_text(encoding="utf-8")))


@functools.cache
def pictures() -> np.ndarray:
    """Return u8[pictures, SIDE, SIDE, 3], read from one sheet."""
    from PIL import Image

    Image.init()
    if "WEBP" not in Image.OPEN:
        raise UserError("bundled:emoji: this Pillow cannot read WebP; install Pillow from PyPI (pip install --upgrade pillow)")
    with Image.open(BUNDLED_DIR / "emoji" / "images.webp") as image:
        sheet = np.asarray(image.convert("RGB"))
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    return sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2).reshape(rows * columns, SIDE, SIDE, 3)


@functools.cache
def held_out() -> frozenset[int]:
    """Return the families of "validation": every seventh of each group's training families, in CLDR's order."""
    families: dict[str, dict[int, None]] = {}
    for record in records():
        if record["split"] == "train":
            families.setdefault(record["group"], {})[record["family"]] = None
    return frozenset(family for of in families.values() for family in list(of)[3::VALIDATION_EVERY])


@functools.cache
def class_texts() -> dict[str, tuple[str, ...]]:
    """Return words for each group: those of its name and of its subgroups' names in CLDR, with hyphens as spaces.

    "animals-nature": "animals", "nature", "animal mammal", "animal bird" ... Chosen on "validation": over five small
    models the mean accuracy is 0.26, with the subgroups alone 0.25, with the names alone 0.14.
    """
    found: dict[str, dict[str, None]] = {}
    for record in records():
        texts = found.setdefault(record["group"], dict.fromkeys(record["group"].split("-")))
        texts[record["subgroup"].replace("-", " ")] = None
    return {group: tuple(texts) for group, texts in found.items()}


class Emoji(Source):
    """One example per emoji: {"image": u8[64, 64, 3], "label", "captions"}; the first caption is the name.

    `draw` also returns its skin tones, each with its own picture and name. The label is the CLDR group. To choose settings
    without the test split, "train" is split into "fit" and "validation", also by families.
    """

    def __init__(self, split: str):
        check_split("bundled:emoji", split, ("train", "test", "fit", "validation"))
        self.name = f"bundled:emoji/{split}"
        whole = split if split == "test" else "train"
        self.records = [record for record in records() if record["split"] == whole]
        if whole != split:
            held = held_out()
            self.records = [record for record in self.records if (record["family"] in held) == (split == "validation")]
        self.classes = tuple(dict.fromkeys(record["group"] for record in records()))
        self._labels = np.array([self.classes.index(record["group"]) for record in self.records], np.int32)
        self.class_texts = class_texts()
        self.arrays = {"image": pictures()[[record["image"] for record in self.records]], "label": self._labels}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._example(index, self.records[index])

    def _example(self, index: int, holder: dict[str, Any]) -> dict[str, Any]:
        captions = captions_of(holder["name"], self.records[index]["keywords"])
        return {"image": pictures()[holder["image"]], "label": self._labels[index], "captions": captions}

    def draw(self, index: int, generator: np.random.Generator) -> dict[str, Any]:
        """Return the emoji or, with probability one half, one of its skin tones, with its captions."""
        tones = self.records[index]["tones"]
        if not tones or generator.random() < 0.5:
            return self[index]
        return self._example(index, tones[generator.integers(len(tones))])

    def captions(self, index: int) -> tuple[str, ...]:
        record = self.records[index]
        names = [record["name"], *(tone["name"] for tone in record["tones"])]
        return tuple(caption for name in names for caption in captions_of(name, record["keywords"]))

    def labels(self) -> np.ndarray:
        return self._labels

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.records[index]['name']}"

    def keys(self) -> Iterable[bytes]:
        """Yield each emoji's code points."""
        return (record["hexcode"].encode() for record in self.records)


def captions_of(name: str, keywords: list[str]) -> tuple[str, ...]:
    """Return the captions: the name; the name with each keyword; all keywords."""
    return (name, *(f"{name}, {keyword}" for keyword in keywords), *([", ".join(keywords)] if keywords else []))


def emoji(split: str, **options: Any) -> Emoji:
    return Emoji(split)
