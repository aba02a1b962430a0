"""`parquet:PATTERN`: tables in the layout of the `datasets` library: images with labels and captions, or text."""

import contextlib
import functools
import glob
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ssl_jax.cache import user_cache
from ssl_jax.data.labels import multi_hot, names_of, vocabulary
from ssl_jax.data.sources import HINT, MISSING, BadExample, Source, digest
from ssl_jax.data.sources.files import content_samples
from ssl_jax.data.sources.image_table import column_names
from ssl_jax.errors import UserError

Fields = tuple[tuple[str, Any], ...]


def _pyarrow(uri: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet

        return pyarrow
    except ImportError:
        raise UserError(f"{uri}: needs pyarrow; run pip install pyarrow") from None


class Parquet(Source):
    """`parquet:PATTERN`: a file, a glob or a folder of .parquet files with one schema, read as one table in their order.

    Columns are found by their usual names, or by `data.columns`. An image is bytes, a struct of bytes and path, or a path
    relative to the files. A label is a class number (named by the `datasets` library's metadata where it is there) or a name;
    null and -1 are missing. With `label_separator` it is a list of these, or a text of several names. A table without images
    gives its columns as they are, class numbers as names.

    Parquet gives no random access, so the table is copied once, uncompressed, into the user's cache and mapped from there.
    """

    def __init__(self, pattern: str, *, columns: tuple = (), label_separator: str | None = None, **options: Any):
        self.name = f"parquet:{pattern}"
        self.files = _files(self.name, pattern)
        self.copy = _arrow_copy(self.name, self.files)
        schema = self.table.schema
        if self.table.num_rows == 0:
            raise UserError(f"{self.name}: is empty; expected rows")
        self._named = _class_names(schema)
        self.columns = column_names(self.name, schema.names, dict(columns))
        self.has_image, self.has_text = "image" in self.columns, "text" in self.columns
        self._labels = None
        if self.has_image:
            self.unread = tuple(name for name in schema.names if name not in self.columns.values())
        if self.has_image and "label" in self.columns:
            self._labels, self.classes = self._read_labels(self.columns["label"], label_separator)

    @functools.cached_property
    def table(self) -> Any:
        """The rows, mapped from the copy."""
        pyarrow = _pyarrow(self.name)
        return pyarrow.ipc.open_file(pyarrow.memory_map(str(self.copy))).read_all()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "table"}  # a worker maps it itself

    def _read_labels(self, column: str, separator: str | None) -> tuple[np.ndarray | None, tuple[str, ...]]:
        names, values = self._named.get(column), self.table.column(column).to_pylist()
        if separator is not None:
            return self._several(values, names, separator)
        if all(value is None or (isinstance(value, float) and (value != value or value.is_integer())) for value in values):
            values = [None if value is None or value != value else int(value) for value in values]  # numbers of a pandas column
        if any(isinstance(value, float | list | dict) for value in values):
            hint = '; for several set data.label_separator, such as ","' if any(isinstance(v, list) for v in values) else ""
            of = self.table.schema.field(column).type
            raise UserError(f"{self.name}: column {column!r} is {of}, expected one class{hint}")
        if names is not None:
            wrong = next((i for i, value in enumerate(values) if value is not None and not -1 <= value < len(names)), None)
            if wrong is not None:
                raise UserError(
                    f"{self.describe(wrong)} has label {values[wrong]}, which is not among the {len(names)} classes"
                )
            return _or_none(np.array([MISSING if value is None else value for value in values], np.int32)), tuple(names)
        texts = ["" if value is None or value == -1 else str(value).strip() for value in values]
        classes = vocabulary(texts)
        numbers = {text: i for i, text in enumerate(classes)} | {"": MISSING}
        return _or_none(np.array([numbers[text] for text in texts], np.int32)), classes

    def _several(self, values: list[Any], names: list[str] | None, separator: str) -> tuple[np.ndarray, tuple[str, ...]]:
        found, named = [], None if names is None else {str(number): name for number, name in enumerate(names)}
        for i, value in enumerate(values):
            try:
                own = names_of(value, separator)
                found.append(own if named is None else tuple(named[number] for number in own))
            except (ValueError, KeyError):
                raise UserError(f"{self.describe(i)} has label {str(value)[:40]!r}, expected classes") from None
        return multi_hot(found, names)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.has_image:
            row = {name: self.table.column(name)[index].as_py() for name in self.table.schema.names}
            try:
                return row | {name: as_names(row[name], of) for name, of in self._named.items()}
            except IndexError:
                raise UserError(f"{self.describe(index)} has a class number beyond the names of its classes") from None
        example = {"image": self._image(index)}
        if self.has_text:
            example["captions"] = self._captions(index)
        return example if self._labels is None else example | {"label": self._labels[index]}

    def _image(self, index: int) -> bytes:
        value = self.table.column(self.columns["image"])[index].as_py()
        path = value if isinstance(value, str) else None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, bytes):
            return value
        if not path:
            raise BadExample(f"{self.describe(index)} has no image; {HINT}")
        try:
            return (pathlib.Path(self.files[0]).parent / path).read_bytes()
        except OSError as error:
            raise BadExample(f"{self.describe(index)}: {path} cannot be read ({error.strerror}); {HINT}") from None

    def _captions(self, index: int) -> tuple[str, ...]:
        value = self.table.column(self.columns["text"])[index].as_py()
        texts = value if isinstance(value, list) else [value]
        return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())

    @property
    def captions(self) -> Callable[[int], tuple[str, ...]] | None:
        return self._captions if self.has_image and self.has_text else None

    def labels(self) -> np.ndarray | None:
        return self._labels

    def describe(self, index: int) -> str:
        return f"{self.name}: row {index:,}"

    def fingerprint(self) -> str:
        names = [os.path.basename(file).encode() for file in self.files]
        return digest([*names, *content_samples(self.files), str(len(self)).encode()], self._labels, self.classes)


def as_names(value: Any, names: Sequence[str]) -> Any:
    """Return the name of a class number, or those of a list; null and -1 are missing: as they are, and not in a list."""
    if isinstance(value, list):
        return [names[number] for number in value if number is not None and number >= 0]
    return value if value is None or value < 0 else names[value]


def _or_none(labels: np.ndarray) -> np.ndarray | None:
    """Return labels, or None where all are missing."""
    return None if (labels == MISSING).all() else labels


def _files(uri: str, pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)
    found = sorted(glob.glob(os.path.join(path, "*.parquet") if os.path.isdir(path) else path))
    if not found:
        raise UserError(f"{uri}: there is no such file; expected a .parquet, a folder of them or *.parquet")
    return found


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the class names of each column that the `datasets` library wrote as ClassLabel."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        inner = lambda of: of[0] if isinstance(of, list) else of.get("feature") or of  # of a list of classes
        return {name: inner(of)["names"] for name, of in features.items() if inner(of).get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError):
        return {}


def _arrow_copy(uri: str, files: list[str]) -> pathlib.Path:
    """Return the path of the files' rows as one Arrow file, which is made where the cache does not have it."""
    pyarrow = _pyarrow(uri)
    stamp = [(os.path.abspath(file), os.path.getsize(file), os.stat(file).st_mtime_ns) for file in files]
    copy = user_cache() / "parquet" / f"{hashlib.sha256(repr(stamp).encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.arrow"
    if copy.is_file():
        return copy
    partial = copy.with_suffix(f".{os.getpid()}.partial")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            writer, schema = None, None
            for file in files:
                rows = stack.enter_context(pyarrow.parquet.ParquetFile(file))
                if writer is None:
                    schema = rows.schema_arrow
                    writer = stack.enter_context(pyarrow.ipc.new_file(str(partial), schema))
                if rows.schema_arrow.remove_metadata() != schema.remove_metadata():
                    raise UserError(f"{uri}: {file} has other columns than {files[0]}; read them as separate sources")
                for batch in rows.iter_batches(1024):
                    writer.write_batch(batch)
        os.replace(partial, copy)
    except pyarrow.ArrowException as error:
        raise UserError(f"{uri}: is not a readable parquet file ({error})") from None
    except OSError as error:
        raise UserError(f"{uri}: cannot be copied to {copy.parent} ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)
    return copy
