"""The signals that end a run; its reader processes ignore them."""

import functools
import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker, spawn

from ssl_jax.streams import quiet_libraries

# A terminal sends SIGINT (Ctrl-C) and SIGHUP (it is closed); schedulers and systemd send SIGTERM; SLURM's --signal sends
# the configured signal, usually SIGUSR1 or SIGUSR2.
SHUTDOWN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def shield_children() -> None:
    """Block the shutdown signals in this thread, so that processes that it starts inherit the block.

    A signal to the process group then reaches only the run, however early. No effect in the main thread, which must
    receive them. multiprocessing's resource tracker is started first because starting it unblocks two of them; it removes the
    remains of a killed process without its default warning.
    """
    if threading.current_thread() is threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN)
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (before, "ignore:resource_tracker:UserWarning")))
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before
    signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN)


@functools.cache
def spare_main_module() -> None:
    """Start grain's reader processes without executing the main script of this process again.

    By default multiprocessing executes it in order to unpickle objects that it defines; grain pickles these by value. A script
    without `if __name__ == "__main__"` would otherwise start a second run in every reader.
    """
    default = spawn.get_preparation_data

    def preparation_data(name: str) -> dict:
        data = default(name)
        if name.startswith("grain-process-prefetch"):
            data.pop("init_main_from_name", None)
            data.pop("init_main_from_path", None)
        return data

    spawn.get_preparation_data = preparation_data


def become_reader(index: int, count: int) -> None:
    """Set up a process that reads examples (one of `count`): ignore the shutdown signals, and end with the parent process."""
    quiet_libraries()
    for number in SHUTDOWN:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
