"""Standard streams that may be closed, in another encoding than UTF-8, or lose their reader while a run goes on."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

NAMES = ("stdin", "stdout", "stderr")


def quiet_libraries() -> None:
    """Silence what libraries print about things that are handled here.

    Pillow's warnings of broken EXIF data and large images; what Orbax logs, which it raises as well; and, once a write to a
    full disk has failed, TensorStore's other writes, which report to an event loop that Orbax has closed.
    """
    warnings.filterwarnings("ignore", module="PIL")
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            before(unraisable)

    sys.unraisablehook = hook


def open_closed() -> None:
    """Open the null device for each standard stream that the parent closed, and let no character fail to be printed.

    Python sets a closed stream to None, and the next file opened would get its descriptor, so that libraries which write
    to descriptor 2 would write into that file.
    """
    for number, name in enumerate(NAMES):
        if getattr(sys, name) is None:
            _null(number)
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    if isinstance(sys.stdout, io.TextIOWrapper):  # Python's stderr escapes such characters already
        sys.stdout.reconfigure(errors="replace")


def silence() -> None:
    """Send the rest of both outputs to the null device, so that flushing them at exit raises nothing."""
    for number in (1, 2):
        _null(number)


def _null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)


class _Outliving(io.FileIO):
    """Standard output or error; once its reader is gone (a closed terminal, a pipe's end), output is dropped."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            _null(self.fileno())
            return len(data)


@contextlib.contextmanager
def outlive_readers() -> Iterator[None]:
    """Keep a run alive whose terminal or pipe is closed: what it prints is then dropped. Captured streams stay as they are."""
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
