"""A corpus as pieces of text, readable in order from any place and larger than memory, split where no token is split."""

import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import os
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ssl_jax.data.sources.files import is_gzip
from ssl_jax.data.sources.tables import json_object, text_of
from ssl_jax.data.sources.texts import Texts
from ssl_jax.errors import UserError

BLOCK = 1 << 20  # bytes read at once
PIECE = 1 << 17  # approximate number of characters that are tokenized at once
HASHED = 1 << 26  # corpora up to this size are identified by their bytes, larger ones by name, size and date
BOM = b"\xef\xbb\xbf"
_CUT = re.compile(r"\S(?=\s)")
SEPARATORS = {"file": None, "line": re.compile(r"\r?\n"), "blank_line": re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*)+")}


class Piece(NamedTuple):
    text: str
    first: bool  # whether it begins a document
    end: int  # the place after it, from which `pieces` can continue, or -1


@runtime_checkable
class Documents(Protocol):
    """Ordered text documents. Places are byte offsets in text files (after decompression) or numbers of documents."""

    name: str
    size: int
    skipped: int  # unreadable lines that were skipped

    @property
    def separable(self) -> bool:
        """Return whether the corpus may have several documents; otherwise it is one continuous text."""
        ...

    def fingerprint(self) -> str: ...

    def pieces(self, start: int, stop: int) -> Iterator[Piece]: ...


def open_documents(uri: str, *, column: str | int = "text", documents: str = "file", skip_bad: bool = False) -> Documents:
    """Open the documents of `uri`: text:GLOB, jsonl:FILE, tsv:, csv:, bundled: or any other source with a text column."""
    scheme, _, rest = uri.partition(":") if isinstance(uri, str) else ("", "", "")
    if scheme == "text":
        return TextFiles(uri, rest, documents, skip_bad)
    if scheme == "jsonl" and _large(rest):
        return JsonLines(uri, rest, column, skip_bad)
    from ssl_jax.data.sources.text_columns import read_table

    table = read_table(uri, {"text": column}, skip_bad=skip_bad, remedy="set data.column")
    return Rows(uri, table.columns["text"], table.skipped)


def _large(path: str) -> bool:
    return os.path.isfile(os.path.expanduser(path)) and os.path.getsize(os.path.expanduser(path)) > HASHED


@dataclasses.dataclass
class Rows:
    """Documents in memory; a place is the number of a document, or of a character if there is only one document."""

    name: str
    texts: tuple[str, ...]
    skipped: int = 0

    @property
    def separable(self) -> bool:
        return len(self.texts) > 1

    @property
    def size(self) -> int:
        return len(self.texts) if self.separable else len(self.texts[0])

    @functools.cache  # noqa: B019  (few, and as long-lived as the process)
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.skipped} skipped".encode() if self.skipped else b"")  # token arrays record it too
        for text in self.texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()

    def __hash__(self) -> int:
        return id(self)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        if not self.separable:
            yield from _in_pieces(self.texts[0][start:stop], -1)
            return
        for i in range(start, stop):
            yield from _in_pieces(self.texts[i], i + 1)


def _in_pieces(text: str, end: int) -> Iterator[Piece]:
    """Yield the pieces of one document; reading can resume only after its last piece."""
    start = 0
    while start < len(text) or start == 0:
        stop = start + cut(text[start : start + 2 * PIECE]) if len(text) - start > 2 * PIECE else len(text)
        yield Piece(text[start:stop], start == 0, end if stop >= len(text) else -1)
        start = max(stop, 1)


def cut(text: str) -> int:
    """Return the last place where a word ends and white space begins, which no token of a published tokenizer crosses.

    If there is none (Chinese, one very long word), return the text's length, which may split a token.
    """
    for start in (max(0, len(text) - 4096), 0):
        found = None
        for found in _CUT.finditer(text, start):  # noqa: B007
            pass
        if found is not None:
            return found.end()
    return len(text)


# Gzip -----------------------------------------------------------------------------------------------------------------


def open_bytes(path: str) -> io.BufferedIOBase:
    """Open a file's bytes, decompressed if it is gzipped; seeking backwards then reads again from the beginning."""
    return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")


def content_size(uri: str, path: str) -> int:
    """Return the number of bytes that `open_bytes` reads, for a gzipped file by one pass; raise UserError if it is damaged."""
    if not _is_gzip(path):
        return os.path.getsize(path)
    stat = os.stat(path)
    try:
        return _gzip_size(path, stat.st_size, stat.st_mtime_ns)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{uri}: {path} is a damaged gzip file ({error}); download it again") from None


def _is_gzip(path: str) -> bool:
    with open(path, "rb") as handle:
        return is_gzip(handle.read(2))


@functools.lru_cache(maxsize=256)
def _gzip_size(path: str, size: int, changed: int) -> int:
    with gzip.open(path, "rb") as handle:
        return sum(len(block) for block in iter(functools.partial(handle.read, BLOCK), b""))


# Sources --------------------------------------------------------------------------------------------------------------


class TextFiles:
    """`text:GLOB`: plain UTF-8 text, gzipped or not. A document is a file, a line or a paragraph (`documents`)."""

    arrays = None
    classes: tuple[str, ...] = ()

    def __init__(self, uri: str, pattern: str, documents: str = "file", skip_bad: bool = False):
        self.name, self.documents, self.skip_bad, self.skipped = uri, documents, skip_bad, 0
        expanded = os.path.expanduser(pattern)
        self.files = [expanded] if os.path.isfile(expanded) else sorted(glob.glob(expanded, recursive=True))
        self.files = [file for file in self.files if os.path.isfile(file)]
        if not self.files:
            folder = os.path.isdir(expanded)
            what = "is a folder; write text:" + os.path.join(pattern, "*.txt") if folder else "no file matches; check the path"
            raise UserError(f"{uri}: {what}")
        self.sizes = [content_size(uri, file) for file in self.files]
        for file, size in zip(self.files, self.sizes, strict=True):
            if size == 0:
                raise UserError(f"{uri}: {file} is empty; remove it or give a file with text")
        self.size = sum(self.sizes)

    @property
    def separable(self) -> bool:
        return self.documents != "file" or len(self.files) > 1

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.documents.encode())
        for file, size in zip(self.files, self.sizes, strict=True):
            digest.update(f"{size}\0".encode())
            if self.size <= HASHED:
                digest.update(pathlib.Path(file).read_bytes())
            else:
                digest.update(f"{os.path.abspath(file)}\0{os.stat(file).st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        base = 0
        for file, size in zip(self.files, self.sizes, strict=True):
            low, high = max(start - base, 0), min(stop - base, size)
            if low < high:
                yield from self._split(self._file(file, base, low, high, size), at_start=low == 0)
            base += size

    def _split(self, pieces: Iterator[tuple[str, int]], at_start: bool) -> Iterator[Piece]:
        """Split a file's pieces into documents."""
        separator = SEPARATORS[self.documents]
        first = at_start
        for text, end in pieces:
            if separator is None:
                yield Piece(text, first, end)
                first = False
                continue
            parts = separator.split(text)
            for i, part in enumerate(parts):
                first |= i > 0
                if part.strip() or (part and not first):
                    yield Piece(part, first, -1)
                    first = False
            yield Piece("", False, end)

    def _file(self, file: str, base: int, low: int, high: int, size: int) -> Iterator[tuple[str, int]]:
        """Yield (text, place after it) of the bytes low:high; a character that a limit splits belongs to the following part."""
        with open_bytes(file) as handle:
            if low == 0:
                low = len(BOM) if handle.read(len(BOM)) == BOM else 0
            else:
                low = _character_start(handle, low)
            if high < size:
                high = max(low, _character_start(handle, high))
            handle.seek(low)
            rest, place = b"", low
            while True:
                block = handle.read(min(BLOCK, high - place - len(rest)))
                data = rest + block
                last = place + len(data) >= high
                if not block and not last:
                    raise UserError(f"{self.name}: {file} became shorter while it was read; start again when it is complete")
                text, used, exact = self._decode(file, data, place, last)
                if not last and exact:  # keep the text after the last good cut for the next block
                    keep = self._document_cut(text)
                    used -= len(text[keep:].encode())
                    text = text[:keep]
                rest, place = data[used:], place + used
                if text:
                    yield text, base + place
                if last:
                    return

    def _document_cut(self, text: str) -> int:
        """Return where a block may end: at the end of a document if it contains one, else at the end of a word."""
        separator, at = SEPARATORS[self.documents], 0
        for found in separator.finditer(text) if separator else ():
            at = found.start()
        return at or cut(text)

    def _decode(self, file: str, data: bytes, place: int, last: bool) -> tuple[str, int, bool]:
        """Return (text, bytes used, whether these are all bytes); a split last character is left to the next block."""
        end = len(data) if last else _complete(data)
        try:
            return data[:end].decode("utf-8"), end, True
        except UnicodeDecodeError as error:
            if not self.skip_bad:
                raise UserError(
                    f"{self.name}: {file} is not UTF-8 at byte {place + error.start:,}; convert it, or set "
                    'data.on_bad_example="skip"'
                ) from None
        lines = []
        for line in data[:end].split(b"\n"):
            try:
                lines.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                self.skipped += 1
        return "\n".join(lines), end, False


def _complete(data: bytes) -> int:
    """Return the number of leading bytes that end with a whole character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return len(data)
        if byte >= 0xC0:  # the first byte of a character of 2, 3 or 4
            need = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < need else len(data)
    return len(data)


def _character_start(handle: Any, place: int) -> int:
    """Return `place`, moved back to the first byte of its character."""
    handle.seek(max(place - 3, 0))
    data = handle.read(min(place, 3) + 1)
    at = min(place, 3)
    if at >= len(data):  # the end of the file
        return place
    back = 0
    while back < at and 0x80 <= data[at - back] < 0xC0:
        back += 1
    return place - back if data[at - back] >= 0xC0 else place


class JsonLines:
    """A jsonl file larger than memory, gzipped or not: one object per line, with its text under `column`."""

    def __init__(self, uri: str, path: str, column: str | int, skip_bad: bool = False):
        self.name, self.path, self.column, self.skip_bad, self.skipped = uri, os.path.expanduser(path), column, skip_bad, 0
        self.size, self.separable = content_size(uri, self.path), True

    def fingerprint(self) -> str:
        stat = os.stat(self.path)
        return hashlib.sha256(
            f"{os.path.abspath(self.path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{self.column}".encode()
        ).hexdigest()

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the documents whose lines begin in start:stop."""
        with open_bytes(self.path) as handle:
            if start > 0:
                handle.seek(start - 1)
                handle.readline()
            while handle.tell() < stop and (line := handle.readline()):
                end = handle.tell()
                if not line.strip():
                    continue
                try:
                    text = self._text(line, end - len(line))
                except UserError:
                    if not self.skip_bad:
                        raise
                    self.skipped += 1
                    continue
                yield from _in_pieces(text, end)

    def _text(self, line: bytes, place: int) -> str:
        where = f"the line at byte {place:,}"
        try:
            text = text_of(json_object(self.name, where, line).get(self.column))
        except ValueError as error:
            raise UserError(f"{self.name}: {where}: {self.column} is {error}") from None
        if text is None:
            raise UserError(f"{self.name}: {where}: {self.column} is missing or null, expected text; remove the line")
        return text


def whole_documents(documents: Documents) -> Iterator[str]:
    """Yield the text of every document, joined from its pieces."""
    parts: list[str] = []
    for piece in documents.pieces(0, documents.size):
        if piece.first and parts:
            yield "".join(parts)
            parts = []
        if piece.text or piece.first:
            parts.append(piece.text)
    if parts:
        yield "".join(parts)


def open_text(rest: str, **options: Any) -> Texts:
    """Open `text:GLOB` as a source of examples {"text": a file's text}."""
    files = TextFiles(f"text:{rest}", rest)
    return Texts(files.name, list(whole_documents(files)))
