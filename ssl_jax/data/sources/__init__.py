"""Sources: a URI -> random access to examples as they are stored.

    bundled:NAME[/SPLIT]        data that ship with the package      npz:FILE                 arrays by name
    tfds:NAME[/CONFIG][:SPLIT]  prepared by TFDS as ArrayRecord      folder:DIR               image files
    csv:, tsv:, jsonl:FILE      tables, by column                    tar:PATTERN              WebDataset shards
    text:GLOB                   plain text files                 parquet:PATTERN          tables of the `datasets` library

The kind of data determines the processing of examples (decoding, cropping, tokenizing), not the source. A new scheme is a line
in SCHEMES, a new bundled data set a line in `bundled.BUNDLED`. docs/data.md lists what each source reads, rejects and skips.
"""

import difflib
import functools
import hashlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ssl_jax.errors import UserError

SCHEMES = {
    "bundled": "ssl_jax.data.sources.bundled:open_bundled",
    "npz": "ssl_jax.data.sources.arrays:Npz",
    "folder": "ssl_jax.data.sources.folder:Folder",
    "tfds": "ssl_jax.data.sources.tfds:open_tfds",
    "text": "ssl_jax.data.text.corpus_files:open_text",
    "jsonl": "ssl_jax.data.sources.image_table:open_jsonl",
    "csv": "ssl_jax.data.sources.image_table:open_csv",
    "tsv": "ssl_jax.data.sources.image_table:open_tsv",
    "tar": "ssl_jax.data.sources.tar_shards:TarShards",
    "parquet": "ssl_jax.data.sources.parquet:Parquet",
}

TABLES = ("csv", "tsv", "jsonl", "parquet")
TEXT_ONLY = ("parallel", "trec")  # schemes of text with targets, `sources.text_columns.read_table`
MISSING = -1  # the label of an example without one, if others have labels
HINT = 'fix it, remove it, or set data.on_bad_example="skip"'


class BadExample(UserError):
    """An example that cannot be read: a truncated file, a wrong shape, invalid UTF-8. The message names its source and place.

    `data.on_bad_example` decides whether it stops the run or is skipped and counted.
    """


class Source:
    """Random access to examples as they are stored. Cheap to copy to a worker process, safe to read from threads.

    Subclasses set `name` and implement `__len__`, `__getitem__` and `describe`; the rest has defaults.
    """

    name: str  # the URI
    classes: tuple[str, ...] = ()  # class names; () without labels
    arrays: dict[str, np.ndarray] | None = None  # the whole set, if it is arrays with a leading axis of examples
    class_texts: Mapping[str, Any] | None = None  # class name -> words for it
    captions: Callable[[int], tuple[str, ...]] | None = None  # example -> its captions, read without its image
    has_image: bool = True  # False if examples are known to have no images
    has_text: bool = True  # False if examples are known to have no captions
    all_labelled: bool = False  # every example is known to have a label, although labels() is slow
    draw: Callable[[int, np.random.Generator], dict[str, Any]] | None = None  # example -> a random variant of it
    unread: tuple[str, ...] = ()  # columns of a table that are not read

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one example: "image" (u8[height, width, channels] or an encoded file as bytes), "label", "text" ...

        Raise BadExample if it cannot be read.
        """
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Return the example's name for errors: its source and its file, line or index."""
        raise NotImplementedError

    def labels(self) -> np.ndarray | None:
        """Return i32[len] without decoding anything (MISSING for an example without label); None without labels.

        If examples may have several classes: bool[len, classes].
        """
        return None

    def keys(self) -> Iterable[bytes]:
        """Yield a key that identifies each example independently of the others: its name within the source, or its content.

        The default hashes the content of every example, which reads the whole source.
        """
        return (content_key(self[index]) for index in range(len(self)))

    def remarks(self) -> tuple[str, ...]:
        """Return remarks on the source, one line each: what it found but does not read, with counts."""
        return ()

    def fingerprint(self) -> str:
        """Return a digest of the examples, their order and their labels.

        Image files are identified by name, size and a sample of their bytes, arrays and tables by content.
        """
        return digest(self.keys(), self.labels(), self.classes)


def content_key(example: Mapping[str, Any]) -> bytes:
    """Return a digest of an example's content: of its image if it has one, else of all of it."""
    if "image" in example:
        example = {"image": example["image"]}
    state = hashlib.blake2b(digest_size=16)
    for name in sorted(example):
        value = example[name]
        state.update(name.encode() + b"\0")
        if isinstance(value, np.ndarray):
            state.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            state.update(value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass"))
    return state.digest()


def digest(keys: Iterable[bytes], labels: np.ndarray | None = None, classes: Iterable[str] = ()) -> str:
    """Return the hexadecimal digest of a list of keys with their labels and class names."""
    state = hashlib.sha256()
    for key in keys:
        state.update(len(key).to_bytes(8, "little"))
        state.update(key)
    state.update("\0".join(classes).encode("utf-8", "surrogateescape"))
    if labels is not None:
        state.update(np.ascontiguousarray(labels, np.int32).tobytes())
    return state.hexdigest()[:32]


def load_source(
    uri: str, *, dir: str | None = None, columns: Mapping[str, str | None] | None = None, label_separator: str | None = None
) -> Source:
    """Open the source `uri`; `dir`: the folder of prepared data; `columns`: the columns of a table by role;
    `label_separator`: the separator between the classes of an example in a table's cell, if it may have several.

    Raise UserError for an unknown scheme or name, with the nearest one, and for missing data, with the way to get them.
    """
    if not isinstance(uri, str) or ":" not in uri:
        from ssl_jax.data.sources.bundled import BUNDLED

        hint = ""
        if isinstance(uri, str) and os.path.isdir(os.path.expanduser(uri)):
            hint = f"; did you mean folder:{uri}?"
        elif isinstance(uri, str) and uri.split("/")[0] in BUNDLED:
            hint = f"; did you mean bundled:{uri}?"
        raise UserError(f"{uri!r} is not a source{hint or '; write SCHEME:NAME, with a scheme of ' + ', '.join(SCHEMES)}")
    options: dict[str, Any] = {"dir": dir} if dir else {}
    if columns and uri.partition(":")[0] in TABLES:
        options["columns"] = tuple(sorted(columns.items()))
    if label_separator is not None and uri.partition(":")[0] in TABLES:
        options["label_separator"] = label_separator
    try:
        status = os.stat(os.path.expanduser(uri.partition(":")[2]))
        changed = status.st_mtime_ns, status.st_size
    except (OSError, ValueError):
        changed = None
    return _load(uri, tuple(options.items()), changed)


@functools.lru_cache(maxsize=8)
def _load(uri: str, options: tuple[tuple[str, Any], ...], changed: tuple[int, int] | None) -> Source:
    """Open a source, cached for each date and size of its file."""
    scheme, _, rest = uri.partition(":")
    if scheme in TEXT_ONLY:
        raise UserError(f"{uri}: holds text with targets, which this task does not read; see configs/downstream/")
    if scheme not in SCHEMES:
        raise UserError(f"{uri}: unknown scheme {scheme!r}{nearest_of(scheme, SCHEMES)}")
    if not rest:
        raise UserError(f"{uri}: the name after {scheme!r} and the colon is missing")
    return resolve(SCHEMES[scheme], uri)(rest, **dict(options))


def resolve(target: str, uri: str) -> Any:
    """Return the object "module:name"."""
    module, _, name = target.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise UserError(f"{uri}: this version does not support this source") from None
        raise


def nearest_of(name: str, valid: Iterable[str]) -> str:
    """Return the end of a message that names the valid name nearest to `name`, and all valid names."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return (f"; did you mean {close[0]}?" if close else ".") + f" Valid names are {', '.join(valid)}"
