"""Text tokenised once into a memory-mapped array, resumable, and cached under a key of its inputs."""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from ssl_jax.cache import user_cache
from ssl_jax.data.text.corpus_files import PIECE, Documents, Piece
from ssl_jax.data.text.tokenizers import Tokenizer
from ssl_jax.errors import UserError

VERSION = 2  # of the array format: raise it if the same text would give another array
COMMIT = 1 << 26  # characters between the commits from which an interrupted pass continues
BATCH = 64  # pieces per batch of the tokenizer's threads
PROGRESS = 1 << 24  # larger corpora show a progress bar


@dataclasses.dataclass(frozen=True)
class TokenArray:
    """`tokens` u16 or u32[n]; `documents` and `sentences` i64: the first token of each. A separator may separate documents."""

    tokens: np.ndarray
    documents: np.ndarray
    sentences: np.ndarray
    characters: int
    words: int  # separated by white space
    bytes: int  # in UTF-8
    skipped: int  # lines that were not UTF-8
    separated: bool = False  # whether a separator separates documents
    largest: int = 0  # the largest token id


def default_cache() -> pathlib.Path:
    return user_cache() / "tokens"


def token_array(
    source: Documents,
    tokenizer: Tokenizer,
    *,
    start: int = 0,
    stop: int | None = None,
    sentences: bool = False,
    prefix: tuple[int, ...] = (),
    cache: str | pathlib.Path | None = None,
    progress: bool = True,
) -> TokenArray:
    """Return the tokens of `source`'s places start:stop, from the cache or tokenised now.

    The cache's key includes the text, the tokenizer and this code's version, so that a change of any of them is detected. An
    interrupted pass continues at its last commit. `sentences`: tokenise each line separately and record its place.
    `prefix` begins every document.
    """
    stop = source.size if stop is None else stop
    parts = (source.fingerprint(), tokenizer.key, tokenizer.separator_id, prefix, start, stop, sentences, VERSION)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    folder = pathlib.Path(cache or default_cache()).expanduser() / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.cache={folder.parent}: cannot be written ({error.strerror}); give another folder") from None
    manifest = _manifest(folder)
    if not manifest.get("complete"):
        with _lock(folder):
            manifest = _manifest(folder)  # another process may have finished it meanwhile
            if not manifest.get("complete"):
                manifest = _tokenise(source, tokenizer, folder, manifest, start, stop, sentences, prefix, progress)
    dtype = np.dtype(manifest["dtype"])
    read = lambda name, dtype: np.memmap(folder / name, dtype, "r") if os.path.getsize(folder / name) else np.zeros(0, dtype)
    counts = {name: manifest[name] for name in ("characters", "words", "bytes", "skipped", "largest")}
    return TokenArray(
        read("tokens.bin", dtype), read("documents.bin", np.int64), read("sentences.bin", np.int64), **counts,
        separated=tokenizer.separator_id is not None,
    )  # fmt: skip


def _manifest(folder: pathlib.Path) -> dict:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Hold the folder's lock, so that one process tokenises and the others wait."""
    with open(folder / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def _tokenise(source, tokenizer, folder, manifest, start, stop, sentences, prefix, progress) -> dict:
    dtype = np.dtype(np.uint16 if tokenizer.size <= 2**16 else np.uint32)
    counts = ("tokens", "documents", "sentences", "characters", "words", "bytes", "skipped", "largest")
    fresh = dict(place=start, complete=False, source=source.name, dtype=dtype.name) | dict.fromkeys(counts, 0)
    manifest = fresh | manifest
    sizes = {"tokens": dtype.itemsize, "documents": 8, "sentences": 8}
    files = {}
    for name, width in sizes.items():
        files[name] = open(folder / f"{name}.bin", "ab")
        files[name].truncate(manifest[name] * width)  # tokens after the last commit are computed again
    separator = () if tokenizer.separator_id is None else (tokenizer.separator_id,)

    def commit(place: int, complete: bool) -> None:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        manifest.update(place=place, complete=complete)
        temporary = folder / f"manifest.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(manifest))
        os.replace(temporary, folder / "manifest.json")

    def write(ids: Sequence[int]) -> None:
        if ids:
            values = np.asarray(ids, dtype)
            files["tokens"].write(values.tobytes())
            manifest["tokens"] += len(values)
            manifest["largest"] = max(manifest["largest"], int(values.max()))

    def add(pieces: list[Piece]) -> None:
        lines, owners, continues = [], [], []  # texts, their pieces, and whether each continues the previous one
        for i, piece in enumerate(pieces):
            parts = [line for line in piece.text.split("\n") if line.strip()] if sentences else [piece.text]
            lines += parts
            owners += [i] * len(parts)
            continues += [not sentences and not piece.first] * len(parts)
        encoded = iter(tokenizer.encode_pieces(lines, continues))
        for i, group in itertools.groupby(zip(owners, encoded, strict=False), key=lambda pair: pair[0]):
            piece = pieces[i]
            if piece.first or not manifest["documents"]:  # a range that begins inside a document starts a new one
                if manifest["documents"]:
                    write(separator)
                files["documents"].write(np.int64(manifest["tokens"]).tobytes())
                manifest["documents"] += 1
            if piece.first:
                write(prefix)
            for _, ids in group:
                if sentences and ids:
                    files["sentences"].write(np.int64(manifest["tokens"]).tobytes())
                    manifest["sentences"] += 1
                write(ids)
        for piece in pieces:
            manifest["characters"] += len(piece.text)
            manifest["words"] += len(piece.text.split())
            manifest["bytes"] += len(piece.text.encode("utf-8", "surrogatepass"))

    pending: list[Piece] = []
    committed, place = manifest["characters"], manifest["place"]
    first = False  # a document has begun, but only with white space so far
    try:
        with _bar(source.name, stop - start, progress and stop - start > PROGRESS) as advance:
            for piece in source.pieces(place, stop):
                first |= piece.first
                if piece.text.strip() if sentences else piece.text:
                    pending.append(piece._replace(first=first))
                    first = False
                if len(pending) >= BATCH or sum(len(p.text) for p in pending[-1:]) > BATCH * PIECE:
                    add(pending)
                    pending = []
                if piece.end >= 0:
                    if not first and manifest["characters"] + sum(len(p.text) for p in pending) - committed >= COMMIT:
                        add(pending)
                        pending = []
                        committed = manifest["characters"]
                        commit(piece.end, False)
                    advance(piece.end - place)
                    place = piece.end
            add(pending)
        manifest["skipped"] += source.skipped
        commit(stop, True)
    finally:
        for file in files.values():
            file.close()
    return manifest


@contextlib.contextmanager
def _bar(name: str, total: int, show: bool) -> Iterator:
    if not show:
        yield lambda amount: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("tokenising {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield functools.partial(bar.advance, task)
