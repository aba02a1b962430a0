"""A lock of a work directory for one process, released by the kernel when the process dies."""

import contextlib
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

import jax

from ssl_jax.errors import UserError


class Busy(UserError):
    """Another process holds the lock."""


_held: set[pathlib.Path] = set()


@contextlib.contextmanager
def locked(workdir: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of `workdir`, which is created if missing; raise Busy, with the owner, if another process holds it.

    `wait` waits for that process instead. The kernel releases the lock when its owner dies. The lock is reentrant within
    a process.
    """
    workdir = pathlib.Path(workdir).absolute()
    if workdir in _held or jax.process_index() != 0:
        yield
        return
    path = workdir / "lock"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); make room, change it or use another --workdir"
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            raise Busy(f"--workdir={workdir}: is in use by {owner}; wait for it, or use another --workdir") from None
        except OSError:
            pass  # a file system without locks
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: cannot be written ({error.strerror}); make room or use another --workdir"
            ) from None
        _held.add(workdir)
        yield
    finally:
        _held.discard(workdir)
        os.close(handle)
