"""Sources of images with captions: tables that name image files, and tar shards in img2dataset's layout."""

import concurrent.futures
import csv
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssl_jax.cache import user_cache
from ssl_jax.data.pipeline import BadExample
from ssl_jax.data.sources.base import check_exists
from ssl_jax.data.sources.text_tables import read_text
from ssl_jax.errors import UserError

COLUMNS = {  # what a column is usually called
    "image": ("image", "image_path", "filepath", "file_path", "path", "filename", "file_name", "file", "img"),
    "text": ("captions", "caption", "text", "texts", "title", "sentences", "alt_text"),
    "label": ("label", "class", "category"),
}

HINT = 'mend it or set data.on_bad_example="skip"'

# Tables ---------------------------------------------------------------------------------------------------------------


class PairTable:
    """Rows of (image path, captions, label): an image that several rows name is one example with all their captions.

    Paths are relative to the table's folder. The label is optional.
    """

    arrays = None

    def __init__(self, name: str, root: pathlib.Path, rows: Iterator[tuple[str, str, Any, Any]]):
        self.name, self.root = name, root
        self.places: list[str] = []
        self.paths: list[str] = []
        self.texts: list[list[str]] = []
        labels: list[str | None] = []
        number: dict[str, int] = {}
        for place, path, text, label in rows:
            index = number.setdefault(path, len(number))
            if index == len(self.paths):
                self.places.append(place)
                self.paths.append(path)
                self.texts.append([])
                labels.append(label)
            self.texts[index] += [str(t) for t in text] if isinstance(text, list) else ["" if text is None else str(text)]
        if not self.paths:
            raise UserError(f"{name}: is empty; expected rows of image paths and captions")
        self.classes: tuple[str, ...] = ()
        self._labels = None
        if all(label is not None for label in labels):
            self.classes = tuple(sorted({str(label) for label in labels}))
            numbers = {label: i for i, label in enumerate(self.classes)}
            self._labels = np.array([numbers[str(label)] for label in labels], np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.root / self.paths[index]
        try:
            image = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise BadExample(f"{self.describe(index)} names an image that does not exist: {path}; {HINT}") from None
        except OSError as error:
            raise BadExample(f"{self.describe(index)}: {path} cannot be read ({error.strerror}); {HINT}") from None
        example = {"image": image, "captions": self.captions(index)}
        return example if self._labels is None else example | {"label": self._labels[index]}

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(text for text in (text.strip() for text in self.texts[index]) if text)

    def labels(self) -> np.ndarray | None:
        return self._labels

    def describe(self, index: int) -> str:
        return f"{self.name}: {self.places[index]}"


def open_jsonl(path: str, *, columns: tuple = (), **options: Any) -> PairTable:
    """`jsonl:FILE`: one object a line with an image path, a caption or a list of them, and perhaps a label."""
    uri = f"jsonl:{path}"
    wanted = dict(columns)

    def rows():
        for number, line in enumerate(read_text(uri, path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{uri}: line {number:,} is not JSON ({error.msg} at character {error.colno})") from None
            if not isinstance(row, dict):
                raise UserError(f"{uri}: line {number:,} is {str(row)[:40]!r}, expected an object such as {{...}}")
            names = _names(uri, f"line {number:,}", list(row), wanted)
            yield f"line {number:,}", *_cells(uri, number, row, names)

    return PairTable(uri, _root(uri, path), rows())


def open_csv(path: str, *, columns: tuple = (), separator: str = ",", scheme: str = "csv", **options: Any) -> PairTable:
    """`csv:FILE`, its first line names the columns; one caption a row. A file whose first line has tabs only is read as tsv."""
    uri, wanted = f"{scheme}:{path}", dict(columns)
    text = read_text(uri, path)
    first = text.split("\n", 1)[0]
    if separator not in first and "\t" in first:
        separator = "\t"
    reader = csv.reader(
        io.StringIO(text), delimiter=separator, quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    )

    def rows():
        header, names = None, {}
        for row in reader:
            number = reader.line_num
            if not row:
                continue
            if header is None:
                header = row
                names = _names(uri, "line 1", header, wanted)
            elif len(row) < len(header):
                raise UserError(f"{uri}: line {number:,} has {len(row)} columns, expected {len(header)}")
            else:
                yield f"line {number:,}", *_cells(uri, number, dict(zip(header, row, strict=False)), names)

    return PairTable(uri, _root(uri, path), rows())


def open_tsv(path: str, **options: Any) -> PairTable:
    """`tsv:FILE`, as csv with tabs and without quotes."""
    return open_csv(path, **{**options, "separator": "\t", "scheme": "tsv"})


def _root(uri: str, path: str) -> pathlib.Path:
    check_exists(uri, path, folder=False)
    return pathlib.Path(path).expanduser().parent


def _names(uri: str, place: str, header: Sequence[str], wanted: dict[str, str]) -> dict[str, str]:
    """Which column is the image's, the text's and the label's."""
    names = {}
    for role, usual in COLUMNS.items():
        if role in wanted:
            if wanted[role] not in header:
                raise UserError(f"{uri}: {place}: there is no column {wanted[role]!r}; it has {', '.join(map(repr, header))}")
            names[role] = wanted[role]
        else:
            found = next((name for name in usual if name in header), None)
            if found is not None:
                names[role] = found
            elif role != "label":
                raise UserError(
                    f"{uri}: {place}: no column of {', '.join(map(repr, header))} is known to hold the {role}; "
                    f"set data.columns.{role}"
                )
    return names


def _cells(uri: str, number: int, row: dict[str, Any], names: dict[str, str]) -> tuple[str, Any, Any]:
    path = row[names["image"]]
    if not isinstance(path, str) or not path:
        raise UserError(f"{uri}: line {number:,}: {names['image']} is {str(path)[:40]!r}, expected the path of an image")
    return path, row[names["text"]], row.get(names.get("label", ""))


# Tar shards -----------------------------------------------------------------------------------------------------------

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
INDEX_NAME = ".ssl_jax_index.npz"
FIELDS = ("shard", "image_offset", "image_size", "text_offset", "text_size", "json_offset", "json_size")


class TarShards:
    """`tar:PATTERN`: shards whose members KEY.jpg, KEY.txt and KEY.json belong together (img2dataset, WebDataset).

    PATTERN is a file, a glob (*.tar), a range ({00000..00331}.tar) or a folder of shards. Where each member lies is found
    once and kept beside the shards in one file (in ~/.cache/ssl_jax where that cannot be written), so that any example is
    two reads. The caption is the .txt, else "caption" in the .json. Keys without an image are left out; they are counted.
    """

    arrays = None
    classes: tuple[str, ...] = ()

    def __init__(self, pattern: str, **options: Any):
        self.name = f"tar:{pattern}"
        self.shards = _shards(self.name, pattern)
        self.index, self.keys, self.without_image = _index(self.name, self.shards)
        if len(self.index) == 0:
            raise UserError(f"{self.name}: holds no image; expected members such as 000000000.jpg and 000000000.txt")
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, offset, size = self.index[index, :3].tolist()
        return {"image": self._read(index, shard, offset, size), "captions": self.captions(index)}

    def captions(self, index: int) -> tuple[str, ...]:
        shard, _, _, offset, size, json_offset, json_size = self.index[index].tolist()
        text = self._read(index, shard, offset, size).decode("utf-8", "replace").strip() if size else ""
        if not text and json_size:
            try:
                text = str(json.loads(self._read(index, shard, json_offset, json_size)).get("caption") or "").strip()
            except (ValueError, AttributeError):
                text = ""
        return (text,) if text else ()

    def _read(self, index: int, shard: int, offset: int, size: int) -> bytes:
        """pread, which threads may share; a process opens its own files."""
        if shard not in self._files:
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        data = os.pread(self._files[shard], size, offset)
        if len(data) < size:
            raise BadExample(f"{self.describe(index)} is truncated ({len(data):,} of {size:,} bytes); {HINT}")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def labels(self) -> None:
        return None

    def describe(self, index: int) -> str:
        return f"{self.shards[int(self.index[index, 0])]}: {self.keys[index]}"


def open_tar(pattern: str, **options: Any) -> TarShards:
    return TarShards(pattern, **options)


def _shards(uri: str, pattern: str) -> list[str]:
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        path = os.path.join(path, "*.tar")
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if braces:
        first, last = braces.groups()
        numbers = range(int(first), int(last) + 1)
        found = [path[: braces.start()] + f"{n:0{len(first)}d}" + path[braces.end() :] for n in numbers]
        missing = [file for file in found if not os.path.isfile(file)]
        if missing:
            raise UserError(f"{uri}: {len(missing)} of its {len(found)} shards do not exist, the first is {missing[0]}")
    else:
        found = sorted(glob.glob(path))
    if not found:
        raise UserError(f"{uri}: there is no such file; expected a .tar, a folder of them, *.tar or {{00000..00099}}.tar")
    return found


def _index(uri: str, shards: list[str]) -> tuple[np.ndarray, np.ndarray, int]:
    """(i64[N, 7] of FIELDS, keys, how many keys have no image), read from the kept index or built and kept."""
    stamp = json.dumps([[os.path.basename(s), os.path.getsize(s), int(os.path.getmtime(s))] for s in shards])
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    beside = pathlib.Path(shards[0]).parent / f"{INDEX_NAME[:-4]}_{digest}.npz"
    cache = user_cache() / beside.name
    for file in (beside, cache):
        try:
            with np.load(file, allow_pickle=False) as kept:
                return kept["index"], kept["keys"], int(kept["without_image"])
        except (OSError, ValueError, KeyError, EOFError):
            continue
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda job: _scan(*job), enumerate(shards)))
    index = np.array([row for rows, _, _ in parts for row in rows], np.int64).reshape(-1, len(FIELDS))
    keys = np.array([key for _, names, _ in parts for key in names], dtype=np.str_)
    without = sum(count for _, _, count in parts)
    for file in (beside, cache):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as temporary:
                np.savez(temporary, index=index, keys=keys, without_image=without)
            os.replace(temporary.name, file)
            break
        except OSError:
            continue
    return index, keys, without


def _scan(number: int, shard: str) -> tuple[list[tuple[int, ...]], list[str], int]:
    """(rows, keys, keys without an image) of one shard, in its order; only headers are read."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile():
                    key, _, suffix = member.name.removeprefix("./").rpartition(".")
                    members.setdefault(key, {})[suffix.lower()] = (member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard}: is not a readable tar archive ({error}); fetch it again") from None
    rows, keys, without = [], [], 0
    for key, parts in members.items():
        image = next((parts[suffix] for suffix in IMAGE_SUFFIXES if suffix in parts), None)
        if image is None:
            without += any(suffix in parts for suffix in ("txt", "json"))
            continue
        rows.append((number, *image, *parts.get("txt", (0, 0)), *parts.get("json", (0, 0))))
        keys.append(key)
    return rows, keys, without
