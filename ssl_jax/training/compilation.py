"""Compiled programs kept on disk, so that a second start of a config compiles nothing; freed memory kept in the process."""

import ctypes
import os
import pathlib
import platform
import zlib

import jax

from ssl_jax import devices


def cache_directory() -> pathlib.Path:
    """Where compiled programs are kept: $SSL_JAX_CACHE or the user's cache directory, apart for each kind of processor.

    Code that XLA builds for one CPU's features crashes on another, so on CPU the folder's name holds a hash of them.
    """
    base = os.environ.get("SSL_JAX_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ssl_jax")
    key = f"jax-{jax.__version__}-{jax.default_backend()}"
    if jax.default_backend() == "cpu":
        key += f"-{processor():08x}"
    return pathlib.Path(base).expanduser() / "xla" / key


def processor() -> int:
    """A hash of this processor's model and features."""
    described = "\n".join(devices.cpuinfo()) or platform.processor() + platform.machine()
    return zlib.crc32(f"{described} {os.environ.get('XLA_FLAGS', '')}".encode())


def enable_cache() -> None:
    """Turn JAX's compilation cache on, unless the user has set it (JAX_COMPILATION_CACHE_DIR) or SSL_JAX_CACHE is "off"."""
    if jax.config.jax_compilation_cache_dir or os.environ.get("SSL_JAX_CACHE") == "off":
        return
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_freed_memory() -> bool:
    """Let the C library keep what a CPU program frees for its next call; True where that worked (glibc).

    Blocks of over 32 MiB are otherwise handed back to the kernel after every step and come back page by page, zeroed: a third
    of the time of a small GPT's step.
    """
    if jax.default_backend() != "cpu":
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 2**30)) and bool(mallopt(trim_threshold, 2**31 - 1))
