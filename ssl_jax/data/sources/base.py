"""A URI -> a random-access source of examples.

    bundled:NAME[/SPLIT]    ships with the package               npz:FILE     arrays by name
    tfds:NAME[/CONFIG][:SPLIT]  prepared by TFDS as ArrayRecord  folder:DIR   class folders, or one flat folder

A source gives examples as they are stored: what they become (decoded, cropped, tokenized) is decided by the kind of data
(images.py, text.py ...). Another scheme is a line in SCHEMES, another bundled data set a line in BUNDLED.
"""

import difflib
import functools
import gzip
import importlib
import os
import pathlib
import zipfile
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ssl_jax.errors import UserError

SCHEMES = {
    "bundled": "ssl_jax.data.sources.base:bundled",
    "npz": "ssl_jax.data.sources.base:Npz",
    "folder": "ssl_jax.data.sources.base:Folder",
    "tfds": "ssl_jax.data.sources.tfds:open_tfds",
    "text": "ssl_jax.data.text.corpus_files:open_text",
    "jsonl": "ssl_jax.data.pairs:open_jsonl",
    "csv": "ssl_jax.data.pairs:open_csv",
    "tsv": "ssl_jax.data.pairs:open_tsv",
    "tar": "ssl_jax.data.pairs:open_tar",
}

BUNDLED = {
    "fashion_mnist": "ssl_jax.data.sources.base:fashion_mnist",
    "shakespeare": "ssl_jax.data.sources.base:shakespeare",
    "emoji": "ssl_jax.data.sources.emoji:emoji",
}

BUNDLED_DIR = pathlib.Path(__file__).parents[1] / "bundled"


@runtime_checkable
class Source(Protocol):
    """Random access to examples as they are stored. Cheap to copy to a worker process, safe to read from threads."""

    name: str  # the URI
    classes: tuple[str, ...]  # class names; () without labels
    arrays: dict[str, np.ndarray] | None  # the whole set, where it is arrays with a leading axis of examples

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example: "image" (u8[height, width, channels] or an encoded file as bytes), "label", "text" ..."""

    def labels(self) -> np.ndarray | None:
        """i32[len] without decoding anything; None without labels."""

    def describe(self, index: int) -> str:
        """The example as an error message names it: its source and its file or index."""


def load_source(uri: str, **options: Any) -> Source:
    """The source behind `uri`. `options` go to its scheme: `dir` (where prepared data lies).

    Raises UserError for an unknown scheme or name (the nearest is named) and for data that is not there (how to get it).
    """
    if not isinstance(uri, str) or ":" not in uri:
        hint = ""
        if isinstance(uri, str) and os.path.isdir(uri):
            hint = f"; did you mean folder:{uri}?"
        elif isinstance(uri, str) and uri.split("/")[0] in BUNDLED:
            hint = f"; did you mean bundled:{uri}?"
        raise UserError(f"{uri!r} is not a source{hint or '; write SCHEME:NAME, with a scheme of ' + ', '.join(SCHEMES)}")
    return _load(uri, tuple(sorted(options.items())))


@functools.lru_cache(maxsize=8)
def _load(uri: str, options: tuple[tuple[str, Any], ...]) -> Source:
    scheme, _, rest = uri.partition(":")
    if scheme not in SCHEMES:
        raise UserError(f"{uri}: unknown scheme {scheme!r}{_nearest(scheme, SCHEMES)}")
    if not rest:
        raise UserError(f"{uri}: nothing stands after the colon")
    return resolve(SCHEMES[scheme], uri)(rest, **dict(options))


def resolve(target: str, uri: str) -> Any:
    """The object behind "module:name"."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise UserError(f"{uri}: this version reads no such source yet") from None
        raise


def _nearest(name: str, valid: Any) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return (f"; did you mean {close[0]}?" if close else "") + f" Known are {', '.join(valid)}"


class Arrays:
    """A source that is arrays: {"image": u8[N, H, W, C], "label": i32[N]} or others with a leading axis N."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...] = ()):
        self.name, self.arrays, self.classes = name, arrays, classes
        sizes = {key: len(value) for key, value in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise UserError(f"{name}: its arrays differ in length: {', '.join(f'{k} {n:,}' for k, n in sizes.items())}")
        self._size = next(iter(sizes.values()), 0)
        if self._size == 0:
            raise UserError(f"{name}: holds no examples")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[index] for key, value in self.arrays.items()}

    def labels(self) -> np.ndarray | None:
        return self.arrays.get("label")

    def describe(self, index: int) -> str:
        return f"{self.name}: example {index:,}"


# Bundled ------------------------------------------------------------------------------------------------------------


def bundled(rest: str, **options: Any) -> Source:
    """`bundled:NAME[/SPLIT]`: a data set that ships with the package; the split is "train" unless named."""
    name, _, split = rest.partition("/")
    if name not in BUNDLED:
        raise UserError(f"bundled:{rest}: there is no such bundled data set{_nearest(name, BUNDLED)}")
    return resolve(BUNDLED[name], f"bundled:{rest}")(split or "train", **options)


def check_split(uri: str, split: str, splits: tuple[str, ...] = ("train", "test")) -> None:
    """UserError unless `split` is one of `splits`."""
    if split not in splits:
        raise UserError(f"{uri}/{split}: there is no split {split!r}; it has {' and '.join(splits)}")


FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def fashion_mnist(split: str, **options: Any) -> Source:
    """Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): 60,000 and 10,000 grey images of 28 x 28, ten classes."""
    check_split("bundled:fashion_mnist", split)
    prefix = {"train": "train", "test": "t10k"}[split]
    root = BUNDLED_DIR / "fashion_mnist"
    images = read_idx(root / f"{prefix}-images-idx3-ubyte.gz")[..., None]
    labels = read_idx(root / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int32)
    return Arrays(f"bundled:fashion_mnist/{split}", {"image": images, "label": labels}, FASHION_CLASSES)


def read_idx(path: str | os.PathLike) -> np.ndarray:
    """The u8 array of an IDX file, gzipped or not (LeCun's format: magic 0x0000 08 rank, big-endian sizes, bytes)."""
    data = pathlib.Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path}: is not an IDX file of bytes")
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">i4", rank, offset=4))
    start = 4 + 4 * rank
    if len(data) != start + int(np.prod(shape)):
        raise UserError(f"{path}: is truncated ({len(data):,} of {start + int(np.prod(shape)):,} bytes)")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


class Texts:
    """A source of text documents: {"text": str} and, where they have one, {"title": str}."""

    arrays = None
    classes: tuple[str, ...] = ()

    def __init__(self, name: str, texts: list[str], titles: list[str] | None = None):
        self.name, self.texts, self.titles = name, texts, titles

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"text": self.texts[index]}
        return example | {"title": self.titles[index]} if self.titles else example

    def labels(self) -> None:
        return None

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.titles[index]}" if self.titles else f"{self.name}: document {index:,}"


def shakespeare(split: str, **options: Any) -> Source:
    """Shakespeare's plays and poems, one document each: "train" and "test" are the first 90 % and last 10 % of *every*
    work's characters, cut at the end of a line, "all" is both. No work is only in one of them.
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


# Files --------------------------------------------------------------------------------------------------------------


class Npz(Arrays):
    """`npz:FILE`: arrays by name. "image" (or images, x): u8[N, H, W(, C)] or floats in [0, 1]; "label" (or labels, y).

    Class names may stand in an array "classes". Other arrays with a leading axis of N come along under their own names.
    """

    ALIASES = {"images": "image", "x": "image", "labels": "label", "y": "label", "target": "label", "targets": "label"}

    def __init__(self, path: str, **options: Any):
        name = f"npz:{path}"
        check_exists(name, path, folder=False)
        try:
            with np.load(os.path.expanduser(path), allow_pickle=False) as file:
                arrays = {self.ALIASES.get(key, key): file[key] for key in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise UserError(f"{name}: is not an .npz file of plain arrays ({error})") from None
        classes = arrays.pop("classes", None)
        for key, value in arrays.items():
            if value.ndim == 0:
                raise UserError(f"{name}: {key} is a single number; expected one entry an example")
        if "image" in arrays:
            arrays["image"] = self._images(name, arrays["image"])
        if "label" in arrays:
            arrays["label"] = check_labels(name, arrays["label"])
            if classes is None:
                classes = np.arange(arrays["label"].max() + 1)
            if len(classes) <= arrays["label"].max():
                raise UserError(f"{name}: label {arrays['label'].max()} has no name among {len(classes)} classes")
        super().__init__(name, arrays, tuple(str(c) for c in classes) if classes is not None else ())

    @staticmethod
    def _images(name: str, images: np.ndarray) -> np.ndarray:
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
            hint = "; move the channels last" if images.ndim == 4 and images.shape[1] in (1, 3, 4) else ""
            raise UserError(f"{name}: image has shape {images.shape}, expected (N, height, width, 1 or 3 channels){hint}")
        if images.dtype == np.uint8:
            return images
        if not np.issubdtype(images.dtype, np.floating):
            raise UserError(f"{name}: image is {images.dtype}, expected uint8 or floats in [0, 1]")
        images = images.astype(np.float32, copy=False)
        good = np.isfinite(images).all((1, 2, 3)) & (images.min((1, 2, 3)) >= 0) & (images.max((1, 2, 3)) <= 1)
        if not good.all():
            raise UserError(f"{name}: example {int(np.argmin(good)):,} leaves [0, 1]; expected uint8 or floats in [0, 1]")
        return images


def check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    """i32[N] class numbers from 0 on, or a UserError that names the first that is none."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: label is {labels.dtype}{list(labels.shape)}, expected whole numbers, one an example")
    wrong = (labels < 0) | (labels >= 2**24)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise UserError(f"{name}: example {index:,} has label {labels[index]}, expected class numbers from 0 on")
    return labels.astype(np.int32)


def check_exists(name: str, path: str, *, folder: bool) -> None:
    """UserError unless `path` is there; the nearest name beside it is offered."""
    target = pathlib.Path(path).expanduser()
    if target.is_dir() if folder else target.is_file():
        return
    if target.exists():
        raise UserError(f"{name}: is a {'file' if folder else 'folder'}, expected a {'folder' if folder else 'file'}")
    hint = ""
    if target.parent.is_dir():
        close = difflib.get_close_matches(target.name, sorted(os.listdir(target.parent))[:10_000], n=1, cutoff=0.6)
        hint = f"; did you mean {target.parent / close[0]}?" if close else ""
    raise UserError(f"{name}: there is no such {'folder' if folder else 'file'}{hint}")


SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class Folder:
    """`folder:DIR`: image files (JPEG, PNG, WebP, BMP, GIF), in class folders or, without labels, in one flat folder.

    With folders in DIR, each is a class, in the order of their names, and its images are found at any depth; otherwise
    DIR's own images are read without labels. Hidden files and folders are passed over. Order: by path.
    """

    arrays = None

    def __init__(self, path: str, **options: Any):
        self.name = f"folder:{path}"
        check_exists(self.name, path, folder=True)
        self.root = pathlib.Path(path).expanduser()
        entries = sorted(entry.name for entry in os.scandir(self.root) if not entry.name.startswith("."))
        folders = [entry for entry in entries if (self.root / entry).is_dir()]
        flat = [entry for entry in entries if entry.lower().endswith(SUFFIXES) and (self.root / entry).is_file()]
        if flat and folders and any(True for folder in folders for _ in self._images(folder)):
            raise UserError(f"{self.name}: holds images ({flat[0]} ...) beside class folders ({folders[0]} ...); keep one kind")
        self.files, labels, self.classes = flat, [], ()
        if not flat:
            found = [(folder, sorted(self._images(folder))) for folder in folders]
            found = [(folder, files) for folder, files in found if files]
            self.classes = tuple(folder for folder, _ in found)
            self.files = [file for _, files in found for file in files]
            labels = [label for label, (_, files) in enumerate(found) for _ in files]
        if not self.files:
            raise UserError(f"{self.name}: holds no image; expected {', '.join(SUFFIXES)} in it or in class folders below it")
        self._labels = np.array(labels, np.int32) if labels else None

    def _images(self, folder: str):
        for root, folders, files in os.walk(self.root / folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for file in files:
                if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                    yield os.path.relpath(os.path.join(root, file), self.root)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"image": (self.root / self.files[index]).read_bytes()}
        return example if self._labels is None else example | {"label": self._labels[index]}

    def labels(self) -> np.ndarray | None:
        return self._labels

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.root / self.files[index]}"
