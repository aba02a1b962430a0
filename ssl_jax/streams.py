"""Standard streams that may be closed, not encoded in UTF-8, or lose their reader during a run."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

NAMES = ("stdin", "stdout", "stderr")


def quiet_libraries() -> None:
    """Silence libraries' messages about conditions that are handled here.

    These are Pillow's warnings of broken EXIF data and large images; Orbax's log messages, which it also raises; and, after a
    failed write to a full disk, those of TensorStore's other writes, which report to an event loop that Orbax has closed.
    """
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


def open_closed() -> None:
    """Open the null device for each standard stream that the parent closed, and escape characters that cannot be encoded.

    Python sets a closed stream to None, and the next opened file would get its descriptor, so that libraries which write
    to descriptor 2 would write into that file.
    """
    for number, name in enumerate(NAMES):
        if getattr(sys, name) is None:
            _null(number)
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, io.TextIOWrapper):  # Python's stderr already escapes such characters
        sys.stdout.reconfigure(errors="replace")


def silence() -> None:
    """Redirect the rest of both outputs to the null device, so that flushing them at exit does not raise."""
    for number in (1, 2):
        _null(number)


def _null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class _Outliving(io.FileIO):
    """Standard output or error that drops output once its reader is gone (a closed terminal, a pipe's end)."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            _null(self.fileno())
            return len(data)


@contextlib.contextmanager
def outlive_readers() -> Iterator[None]:
    """Keep a run alive if its terminal or pipe is closed, and drop its output; captured streams are not changed."""
    before = sys.stdout, sys.stderr
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and _descriptor(stream) == number:
            stream.flush()
            raw = io.BufferedWriter(_Outliving(number, "w", closefd=False))
            line_buffered = number == 2 or raw.isatty()
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=line_buffered))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _descriptor(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
