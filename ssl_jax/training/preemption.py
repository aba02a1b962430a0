"""Save the last completed step and end on a shutdown signal, even while the main thread is inside a compilation.

The C-level handler writes the signal's number to a pipe; a thread reads it. Between steps the loop calls `must_stop`. While the
main thread is blocked (compilation, evaluation: `may_block`), the thread itself saves the state of the last completed
step and ends the process. Several processes agree on the step to stop at through the coordinator's key-value store.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from ssl_jax.signals import SHUTDOWN

INSISTENT = (signal.SIGTERM, signal.SIGINT)  # a second one of these ends the process at once
SAME_REQUEST = (
    0.5  # seconds within which signals count as one, because launchers and shells forward signals that the group also receives
)
_active: "Preemption | None" = None


class Preemption:
    """A context that turns shutdown signals into an orderly end of the run. Inactive outside the main thread.

    Signals that are ignored on entry (nohup, a shell's background job) stay ignored.
    """

    def __init__(self, grace: float = 25.0):
        self.grace = grace
        self.signal: int | None = None
        self.stop_at: int | None = None  # known once all processes have agreed
        self._condition = threading.Condition()
        self._committed: int | None = None  # steps dispatched so far; None outside training
        self._saver: Callable[[], None] | None = None
        self._closed = threading.Event()

    @property
    def status(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)

    def __enter__(self) -> "Preemption":
        global _active
        self.enabled = threading.current_thread() is threading.main_thread() and _active is None
        if not self.enabled:
            return self
        _active = self
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        caught = [number for number in SHUTDOWN if signal.getsignal(number) != signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in caught}
        self._old_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        if _processes() > 1:
            threading.Thread(target=self._listen, name="preemption", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        global _active
        if not self.enabled:
            return
        self._closed.set()
        signal.set_wakeup_fd(self._old_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        _active = None
        if self.signal is None:
            self._write.close()  # ends the thread; after a signal it remains, to enforce the deadline

    # The loop's side ----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Start training at `step`: from here on the loop responds to a signal."""
        with self._condition:
            self._committed = step

    def end(self) -> None:
        """Mark training as complete and saved; end the process now if a signal has arrived."""
        with self._condition:
            self._committed = None
            if self.signal is not None:
                self._leave()

    def must_stop(self, step: int, ahead: int) -> bool:
        """Return whether to save the state of `step` and stop, rather than dispatch steps step .. step + ahead - 1."""
        with self._condition:
            if self.signal is None:
                self._committed = step + ahead
                return False
            self._condition.wait_for(lambda: self.stop_at is not None, self.grace)
            return self.stop_at is None or step >= self.stop_at

    @contextlib.contextmanager
    def may_block(self, saver: Callable[[], None] | None) -> Iterator[None]:
        """Mark a block in which the main thread cannot respond; `saver` saves the last completed step from another thread."""
        with self._condition:
            self._saver = saver
            if self.signal is not None and saver is not None:
                self._condition.wait_for(lambda: self.stop_at is not None, self.grace)
                if self.stop_at == self._committed:
                    saver()
                    self._leave()
        try:
            yield
        finally:
            with self._condition:  # blocks while the other thread saves and then ends the process
                self._saver = None

    # The thread's side --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        first = None
        while data := self._read.recv(16):
            for number in data:
                if number not in self._handlers:
                    continue
                if first is None:
                    first = time.monotonic()
                    threading.Thread(target=self._stop, args=(number,), name="stop", daemon=True).start()
                elif number in INSISTENT and time.monotonic() - first > SAME_REQUEST:
                    os._exit(128 + number)  # complete checkpoints are not affected

    def _stop(self, number: int) -> None:
        deadline = time.monotonic() + self.grace
        threading.Thread(target=self._enforce, args=(deadline, 128 + number), name="deadline", daemon=True).start()
        with self._condition:
            if self.signal is not None:
                return
            self.signal = number
            committed = self._committed
            if committed is None:  # not training
                self._leave()
            if _processes() == 1:
                self.stop_at = committed
        _say(f"{signal.Signals(number).name}: saving the last completed step")
        if _processes() > 1:
            stop_at = self._agree(committed)
            with self._condition:
                self.stop_at = stop_at
        with self._condition:
            self._condition.notify_all()
            if self._saver is not None and self.stop_at == committed:
                try:
                    self._saver()
                except BaseException as error:
                    _say(str(error))
                self._leave()

    def _leave(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(self.status)

    def _enforce(self, deadline: float, status: int) -> None:
        """End the process when the grace period is over, whatever the other threads do."""
        time.sleep(max(deadline - 0.5 - time.monotonic(), 0))
        _say("the grace period is over; the run continues from its last checkpoint")
        os._exit(status)

    # Several processes --------------------------------------------------------------------------------------------------

    def _agree(self, committed: int) -> int:
        """Return the step that all processes stop at: the furthest that any of them has dispatched."""
        from jax._src import distributed

        client = distributed.global_state.client
        client.key_value_set("ssl_jax/preemption/signal", str(int(self.signal)), allow_overwrite=True)
        client.key_value_set(f"ssl_jax/preemption/step/{_process()}", str(committed))
        milliseconds = int(self.grace * 1000)
        read = lambda rank: int(client.blocking_key_value_get(f"ssl_jax/preemption/step/{rank}", milliseconds))
        return max(read(rank) for rank in range(_processes()))

    def _listen(self) -> None:
        """Poll for a signal that another process received."""
        from jax._src import distributed

        while not self._closed.wait(0.3):
            try:
                number = int(distributed.global_state.client.key_value_try_get("ssl_jax/preemption/signal"))
            except Exception:
                continue
            if self.signal is None:
                self._stop(number)
            return


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal is closed
        print(f"ssl-jax: {text}", file=sys.stderr, flush=True)


def _processes() -> int:
    """Return the number of processes of this run, without importing jax."""
    distributed = sys.modules.get("jax._src.distributed")
    return 1 if distributed is None or distributed.global_state.client is None else distributed.global_state.num_processes


def _process() -> int:
    return sys.modules["jax._src.distributed"].global_state.process_id


def active(grace: float) -> contextlib.AbstractContextManager:
    """Return the context already entered around this run, or a new one."""
    return contextlib.nullcontext(_active) if _active is not None else Preemption(grace)
