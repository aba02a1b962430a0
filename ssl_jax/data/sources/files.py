"""Files by path: check that they exist, and read their text, gzipped or not."""

import concurrent.futures
import difflib
import gzip
import hashlib
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Sequence

from ssl_jax.errors import UserError

BLOCK = 1 << 20  # bytes decompressed at a time
SAMPLED = 4096  # number of files of which a source's fingerprint samples the content; of others it uses the size
SAMPLE = 4096  # bytes sampled at the beginning, in the middle and at the end of such a file
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_exists(name: str, path: str, *, folder: bool) -> None:
    """Raise UserError, with the nearest name in its folder, unless `path` is a file (or a folder)."""
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


def content_samples(paths: Sequence[str | os.PathLike]) -> Iterator[bytes]:
    """Yield a cheap key of each file's content, independent of its date: its size and, for up to SAMPLED evenly spaced files, a
    digest of SAMPLE bytes from its beginning, middle and end. An unreadable file has neither.
    """
    sampled = set(range(0, len(paths), -(-len(paths) // SAMPLED) or 1))

    def sample(place: int) -> bytes:
        try:
            size, parts = os.stat(paths[place]).st_size, []
            if place in sampled:
                with open(paths[place], "rb") as file:
                    for start in (0, max(size // 2 - SAMPLE // 2, 0), max(size - SAMPLE, 0)):
                        file.seek(start)
                        parts.append(file.read(SAMPLE))
        except (OSError, ValueError):
            return b"unreadable"
        return size.to_bytes(8, "little") + hashlib.blake2b(b"".join(parts), digest_size=16).digest()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        yield from pool.map(sample, range(len(paths)), chunksize=256)


def read_bytes(uri: str, path: str) -> bytes:
    """Return the content of a file, decompressed if it is gzipped."""
    check_exists(uri, path, folder=False)
    try:
        data = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{uri}: cannot be read ({error.strerror})") from None
    if not is_gzip(data):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{uri}: is a damaged gzip file ({error}); download it again") from None


def is_gzip(data: bytes) -> bool:
    """Return whether the first bytes of a file are gzip's."""
    return data[:2] == b"\x1f\x8b"


def read_text(uri: str, path: str, encoding: str = "utf-8") -> str:
    """Return the text of a file, gzipped or not, without a byte order mark, its line ends as "\\n".

    Raise UserError that names the line that is not in `encoding`.
    """
    data = read_bytes(uri, path)
    try:
        return data.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        utf16 = " (it begins like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise UserError(
            f"{uri}: line {line:,} is not UTF-8{utf16} (byte {error.start:,} of the file); convert it first"
        ) from None


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1 on, line), split only at "\\n", since texts may contain other characters that Unicode counts as line
    ends."""
    lines = text.split("\n")
    return enumerate(lines[:-1] if lines[-1] == "" else lines, 1)


def without_surrogates(text: str) -> str:
    """Return `text` with each lone surrogate, which cannot be encoded, as U+FFFD; a surrogate pair becomes its character."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
