"""Put batches onto the devices ahead of the loop, in a thread, with the stream's values and order."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ssl_jax.data.pipeline import ReaderDied
from ssl_jax.training.exceptions import ReadingFailed


class Prefetch:
    """An iterator of device batches. `counts`: the steps of each (1: without an axis of steps)."""

    def __init__(self, batches: Iterator[dict], counts: Iterator[int], put: Callable[[dict, int], Any], depth: int = 2):
        self._queue: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self.waited = self.last_wait = 0.0  # seconds waited for all batches, and for the last one
        self._taken: Any = None  # the next item, if `is_ready` has taken it from the queue
        self._waiting = 0.0  # seconds waited for the next item so far
        self._thread = threading.Thread(target=self._run, args=(batches, counts, put), name="prefetch", daemon=True)
        self._thread.start()

    def _run(self, batches, counts, put):
        try:
            for count in counts:
                parts = [next(batches) for _ in range(count)]
                batch = parts[0] if count == 1 else {k: np.stack([part[k] for part in parts]) for k in parts[0]}
                if not self._offer((put(batch, count), None)):
                    break
            else:
                self._offer((None, StopIteration()))
        except ReaderDied as error:
            self._offer((None, ReadingFailed(f"{error}; the last completed step is saved; the same command continues the run")))
        except BaseException as error:  # raised when the batch is taken
            self._offer((None, error))
        finally:
            close = getattr(batches, "close", None)
            if close is not None:
                close()

    def _offer(self, item) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def is_ready(self, seconds: float | None = None) -> bool:
        """Wait for at most `seconds`, and return whether the next batch or an error is available."""
        started = time.monotonic()
        if self._taken is None:
            with contextlib.suppress(queue.Empty):
                self._taken = self._queue.get(timeout=seconds)
        self._waiting += time.monotonic() - started
        return self._taken is not None

    def __next__(self) -> Any:
        self.is_ready()
        (batch, error), self._taken = self._taken, None
        self.last_wait, self._waiting = self._waiting, 0.0
        self.waited += self.last_wait
        if error is not None:
            raise error
        return batch

    def __iter__(self):
        return self

    def close(self) -> None:
        self._stop.set()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._thread.join(timeout=5)
