"""`tar:PATTERN`: shards of image, text and class files with common names (img2dataset, WebDataset)."""

import concurrent.futures
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from ssl_jax.cache import user_cache
from ssl_jax.data.labels import vocabulary
from ssl_jax.data.sources import HINT, MISSING, BadExample, Source, digest
from ssl_jax.data.sources.files import content_samples
from ssl_jax.data.sources.folder import suffixes
from ssl_jax.data.sources.tables import json_object, text_of
from ssl_jax.errors import UserError

INDEX_NAME = ".ssl_jax_index"
VERSION = 2  # of the stored index: raise it if the same shards would give another index
FIELDS = ("shard", "image_offset", "image_size", "text_offset", "text_size", "json_offset", "json_size")


class TarShards(Source):
    """`tar:PATTERN`: shards whose members KEY.jpg, KEY.txt, KEY.json and KEY.cls belong together (img2dataset, WebDataset).

    PATTERN is a file, a glob (*.tar), a range ({00000..00331}.tar) or a folder of shards. The members' offsets are found once
    and stored in one file in the shards' folder (or, if that is not writable, in the user's cache), so that reading an example
    takes two reads. The image has any suffix that Pillow decodes; the caption is the .txt, else "caption" in the .json; the
    label is the content of the .cls. Keys without an image are skipped and counted.
    """

    def __init__(self, pattern: str, **options: Any):
        self.name = f"tar:{pattern}"
        self.shards = _shards(self.name, pattern)
        self.index, self.names, labels, self.without_image, self.repeated = _index(self.name, self.shards)
        if len(self.index) == 0:
            raise UserError(f"{self.name}: contains no image; expected members such as 000000000.jpg and 000000000.txt")
        self.classes = vocabulary(labels.tolist())
        numbers = {label: i for i, label in enumerate(self.classes)} | {"": MISSING}
        self._labels = np.array([numbers[label] for label in labels.tolist()], np.int32) if self.classes else None
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, offset, size = self.index[index, :3].tolist()
        example = {"image": self._read(index, shard, offset, size), "captions": self.captions(index)}
        return example if self._labels is None else example | {"label": self._labels[index]}

    def labels(self) -> np.ndarray | None:
        return self._labels

    def captions(self, index: int) -> tuple[str, ...]:
        shard, _, _, offset, size, json_offset, json_size = self.index[index].tolist()
        text = self._read(index, shard, offset, size).decode("utf-8", "replace").strip() if size else ""
        if not text and json_size:
            try:
                row = json_object(self.name, self.describe(index), self._read(index, shard, json_offset, json_size))
                text = (text_of(row.get("caption")) or "").strip()
            except (ValueError, UserError):
                text = ""  # no caption
        return (text,) if text else ()

    def _read(self, index: int, shard: int, offset: int, size: int) -> bytes:
        """Read with pread, which threads can share; each process opens its own files. Raise BadExample for a truncated file."""
        if shard not in self._files:
            self._files[shard] = os.open(self.shards[shard], os.O_RDONLY)
        data = os.pread(self._files[shard], size, offset)
        if len(data) < size:
            raise BadExample(f"{self.describe(index)} is truncated ({len(data):,} of {size:,} bytes); {HINT}")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def describe(self, index: int) -> str:
        return f"{self.shards[int(self.index[index, 0])]}: {self.names[index]}"

    def keys(self) -> Iterable[bytes]:
        """Yield each example's key in its shard, with the shard's file name."""
        shards = [os.path.basename(shard) for shard in self.shards]
        return (f"{shards[shard]}/{name}".encode() for shard, name in zip(self.index[:, 0].tolist(), self.names, strict=True))

    def fingerprint(self) -> str:
        contents = content_samples(self.shards)
        return digest([*self.keys(), self.index[:, 1:].tobytes(), *contents], self._labels, self.classes)

    def remarks(self) -> tuple[str, ...]:
        found = (("keys without an image", self.without_image), ("members whose name occurs twice in a shard", self.repeated))
        return tuple(f"{count:,} {what}" for what, count in found if count)


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
            raise UserError(
                f"{uri}: {len(missing)} of its {len(found)} shards do not exist, the first is {missing[0]}; download them"
            )
    else:
        found = sorted(glob.glob(path))
    if not found:
        raise UserError(f"{uri}: there is no such file; expected a .tar, a folder of them, *.tar or {{00000..00099}}.tar")
    return found


def _index(uri: str, shards: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Return (i64[N, 7] of FIELDS, keys, labels as text, keys without an image, repeated members), stored or found now."""
    stamp = json.dumps([VERSION, *([os.path.basename(s), os.path.getsize(s), int(os.path.getmtime(s))] for s in shards)])
    name = f"{INDEX_NAME}_{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.npz"
    places = pathlib.Path(shards[0]).parent / name, user_cache() / name
    for file in places:
        try:
            with np.load(file, allow_pickle=False) as stored:
                counts = stored["counts"].tolist()
                return stored["index"], stored["keys"], stored["labels"], counts[0], counts[1]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda job: _scan(*job), enumerate(shards)))
    index = np.array([row for part in parts for row in part.rows], np.int64).reshape(-1, len(FIELDS))
    keys = np.array([key for part in parts for key in part.keys], dtype=np.str_)
    labels = np.array([label for part in parts for label in part.labels], dtype=np.str_)
    counts = [sum(part.without_image for part in parts), sum(part.repeated for part in parts)]
    for file in places:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz", delete=False) as temporary:
                np.savez(temporary, index=index, keys=keys, labels=labels, counts=np.array(counts))
            os.replace(temporary.name, file)
            break
        except OSError:
            continue
    return index, keys, labels, counts[0], counts[1]


@dataclasses.dataclass
class Scanned:
    """The content of one shard, in its order."""

    rows: list[tuple[int, ...]]
    keys: list[str]
    labels: list[str]  # "" for an example without label
    without_image: int
    repeated: int


def _scan(number: int, shard: str) -> Scanned:
    """List the examples of one shard; only headers and class files are read. Raise UserError for a damaged archive."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    labels: dict[str, str] = {}
    repeated = 0
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, name = os.path.split(member.name.removeprefix("./"))
                key, _, suffix = name.partition(".")  # WebDataset: the key ends at the first dot of the file's name
                key, suffix = os.path.join(folder, key), suffix.lower()
                if not member.isfile() or not name.partition(".")[0]:
                    continue
                own = members.setdefault(key, {})
                repeated += suffix in own
                own.setdefault(suffix, (member.offset_data, member.size))
                if suffix == "cls" and key not in labels:
                    labels[key] = archive.extractfile(member).read().decode("utf-8", "replace").strip()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{shard}: is not a readable tar archive ({error}); download it again") from None
    found = Scanned([], [], [], 0, repeated)
    for key, parts in members.items():
        image = next((place for suffix, place in parts.items() if f".{suffix}" in suffixes()), None)
        if image is None:
            found.without_image += any(suffix in parts for suffix in ("txt", "json", "cls"))
            continue
        found.rows.append((number, *image, *parts.get("txt", (0, 0)), *parts.get("json", (0, 0))))
        found.keys.append(key)
        found.labels.append(labels.get(key, ""))
    return found
