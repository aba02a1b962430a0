"""`tar:PATTERN`: shards of image and text files that share a name (img2dataset, WebDataset)."""

import concurrent.futures
import glob
import hashlib
import json
import os
import pathlib
import re
import tarfile
import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np

from ssl_jax.cache import user_cache
from ssl_jax.data.sources import HINT, BadExample, Source, digest
from ssl_jax.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
INDEX_NAME = ".ssl_jax_index.npz"
FIELDS = ("shard", "image_offset", "image_size", "text_offset", "text_size", "json_offset", "json_size")


class TarShards(Source):
    """`tar:PATTERN`: shards whose members KEY.jpg, KEY.txt and KEY.json belong together (img2dataset, WebDataset).

    PATTERN is a file, a glob (*.tar), a range ({00000..00331}.tar) or a folder of shards. Where each member lies is found
    once and kept beside the shards in one file (in ~/.cache/ssl_jax where that cannot be written), so that any example is
    two reads. The caption is the .txt, else "caption" in the .json. Keys without an image are left out; they are counted.
    """

    def __init__(self, pattern: str, **options: Any):
        self.name = f"tar:{pattern}"
        self.shards = _shards(self.name, pattern)
        self.index, self.names, self.without_image = _index(self.name, self.shards)
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

    def describe(self, index: int) -> str:
        return f"{self.shards[int(self.index[index, 0])]}: {self.names[index]}"

    def keys(self) -> Iterable[bytes]:
        """Yield each example's key in its shard, with the shard's file name."""
        shards = [os.path.basename(shard) for shard in self.shards]
        return (f"{shards[shard]}/{name}".encode() for shard, name in zip(self.index[:, 0].tolist(), self.names, strict=True))

    def fingerprint(self) -> str:
        return digest([*self.keys(), self.index[:, 1:].tobytes()])

    def unread(self) -> tuple[str, ...]:
        return (f"{self.without_image:,} keys without an image",) if self.without_image else ()


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
