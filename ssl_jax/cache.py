"""The user's cache directory: compiled programs, token arrays, vocabularies, indices of archives."""

import atexit
import functools
import os
import pathlib
import shutil
import tempfile


def user_cache() -> pathlib.Path:
    """Return $XDG_CACHE_HOME/ssl_jax, else ~/.cache/ssl_jax, or without a home directory a folder for this process only.

    A relative or empty XDG_CACHE_HOME is ignored, as the XDG base directory specification asks.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(root):
        return pathlib.Path(root) / "ssl_jax"
    home = os.path.expanduser("~")
    return pathlib.Path(home) / ".cache" / "ssl_jax" if os.path.isabs(home) else _temporary()


@functools.cache
def _temporary() -> pathlib.Path:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ssl_jax-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
