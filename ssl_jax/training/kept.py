"""Compiled programs on disk, found by what they are made from, so that a second start need not trace and lower either.

JAX's own cache is asked with a program's text, which takes as long to make as all else of a second start. Here the key is a
digest of everything that the text follows from: this package's source, the versions of what traces and compiles, the settings
of JAX and XLA, the processor and devices, the shapes, and the pickled objects whose methods are traced, arrays inside them
included. What cannot be pickled, or holds code that is neither ours nor an installed package's (which may change unseen), has
no key and is traced as always; so is everything where such code was put into our modules, from a notebook or a config, and
where our source was edited after it was imported.

Under its key lies a note: the names that tracing fills in, and which program it is. The program lies under a digest of its
text, so that a change of the source that does not change the program needs a new note only.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import pathlib
import pickle
import sys
import sysconfig
import tempfile
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable

import ssl_jax
from ssl_jax.data.text import Tokenizer
from ssl_jax.training import compilation

PACKAGE = pathlib.Path(ssl_jax.__file__).parent
MAKERS = ("jax", "jaxlib", "flax", "optax", "numpy", "ml_dtypes")  # whose code decides what a program is
MOST = 600  # files; those used longest ago go first
NO_CODE = ("__builtins__", "__spec__", "__loader__", "__cached__", "__doc__", "__annotations__", "__dict__", "__weakref__")
LARGEST = 2**26  # bytes of an array within what is traced


def folder() -> pathlib.Path | None:
    """Where programs are kept: beside JAX's cache; None where that is off."""
    directory = jax.config.jax_compilation_cache_dir
    return pathlib.Path(directory) / "programs" if directory and "://" not in directory else None


def compiled(
    lower: Callable[[], jax.stages.Lowered],
    *,
    traced: Any,
    arguments: tuple,
    result: Any,
    devices: Sequence[jax.Device],
    names: list[str],
) -> Callable:
    """The program that `lower` gives, compiled, or as it was kept.

    traced: the objects that are traced, and all that tracing reads. arguments, result: trees of jax.ShapeDtypeStruct (of the
    result, the structure counts). names: what tracing fills in; it is filled in here where nothing is traced.
    """
    environment = _environment(devices)
    note = _note(traced, (arguments, result), environment)
    program = _load(note, arguments, result, devices, names)
    if program is not None:
        return program
    lowered = lower()
    program, new = _compile(lowered)
    if note is not None and not edited():  # not while it was traced either
        _save(note, _digest(lowered.as_text(), environment), program if new else None, names)
    return program


def shapes(trace: Callable[[], Any], *, traced: Any, arguments: Any) -> Any:
    """What `trace` gives, a tree of jax.ShapeDtypeStruct, or as it was kept; the other arguments are as above."""
    note = _note(traced, arguments, _environment(jax.devices()))
    if note is None:
        return trace()
    with contextlib.suppress(Exception):  # absent, or damaged: traced again
        return pickle.loads(_read(folder() / f"{note}.shapes"))
    found = trace()
    with contextlib.suppress(Exception):
        if not edited():
            _write(folder() / f"{note}.shapes", pickle.dumps(found))
    return found


# Keys ----------------------------------------------------------------------------------------------------------------


def _note(traced: Any, arguments: Any, environment: list) -> str | None:
    """The note's name; None where nothing is kept, or what is traced cannot be told from what it may have become."""
    if folder() is None or jax.process_count() > 1 or edited():
        return None
    try:
        objects = pickled(traced)
    except Exception:  # whatever an object says when it cannot be pickled
        return None
    leaves = [(x.shape, str(x.dtype), str(getattr(x, "sharding", None))) for x in jax.tree.leaves(arguments)]
    return _digest(objects, source(), str(jax.tree.structure(arguments)), leaves, environment)


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(b"%d\0" % len(part) + part)
    return digest.hexdigest()


def _environment(devices: Sequence[jax.Device]) -> list:
    """What decides, besides its text, what a program compiles to, and besides our source, what its text is."""
    return [
        sys.version,
        [importlib.metadata.version(name) for name in MAKERS],
        sorted((name, getattr(jax.config, name, value)) for name, value in jax.config.values.items() if "cache" not in name),
        os.environ.get("XLA_FLAGS"),
        os.environ.get("LIBTPU_INIT_ARGS"),
        compilation.processor(),
        jax.device_count(),
        [(d.id, d.device_kind, d.client.platform_version) for d in devices],
    ]


@functools.cache
def source() -> str:
    """A digest of this package's source."""
    return _digest(*(part for path in files() for part in (str(path), path.read_bytes())))


def files() -> list[pathlib.Path]:
    return sorted(PACKAGE.rglob("*.py"))


def edited() -> bool:
    """Whether a file of the source is newer than the package in memory, which is then perhaps not what the file says."""
    try:
        newest = max(max(stat.st_mtime, stat.st_ctime) for stat in map(os.stat, files()))
    except OSError:  # one was removed this very moment
        return True
    return newest > ssl_jax._imported_at - 0.1  # a clock of files may be late


class Unknown:
    """Stands for code that may change unseen: what holds it has no key."""

    def __reduce__(self):
        raise pickle.PicklingError("code whose source is not known")


def package() -> list[tuple[str, str]] | Unknown:
    """The public constants of this package's modules and classes, as they are now; Unknown where they hold code from elsewhere.

    What is private may be a cache, which a run fills.
    """
    constants: list[tuple[str, str]] = []
    seen: set[int] = set()

    def is_known(where: str, value: Any) -> bool:
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value  # of methods and properties
        if isinstance(value, bool | int | float | str | bytes | None):
            constants.append((where, repr(value)))
            return True
        if id(value) in seen:
            return True
        seen.add(id(value))
        if isinstance(value, Mapping):
            return all([is_known(f"{where}[{key!r}]", part) for key, part in value.items()])
        if isinstance(value, set | frozenset):
            value = sorted(value, key=repr)
        if isinstance(value, list | tuple):
            return all([is_known(f"{where}[{i}]", part) for i, part in enumerate(value)])
        module = getattr(value, "__module__", None)
        constants.append((where, f"{module}:{getattr(value, '__qualname__', '')}"))
        if isinstance(value, type) and ours(str(module)):
            return all([is_known(f"{where}.{name}", part) for name, part in vars(value).items() if name not in NO_CODE])
        return not callable(value) or not isinstance(module, str) or known(module)

    try:
        modules = [(name, vars(sys.modules[name])) for name in sorted(filter(ours, sys.modules))]
        values = [(f"{m}.{name}", value) for m, names in modules for name, value in [*names.items()] if name not in NO_CODE]
        if not all([is_known(*value) for value in values]):
            return Unknown()
    except Exception:  # an object that cannot be looked into
        return Unknown()
    return [(where, value) for where, value in constants if "._" not in where.replace(".__", "")]


def ours(module: str) -> bool:
    return module.partition(".")[0] == ssl_jax.__name__


def pickled(objects: Any) -> bytes:
    """Raises where a class or function in it comes from a file that is neither ours nor an installed package's."""
    with io.BytesIO() as file:
        _Pickler(file).dump(objects)
        return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, type | types.FunctionType) and not known(thing.__module__):
            raise pickle.PicklingError(f"{thing.__module__}.{thing.__qualname__}: its source is not known")
        if isinstance(thing, Tokenizer):  # the library's own pickle orders a vocabulary anew each time
            return str, (thing.key,)
        if isinstance(thing, np.ndarray) and thing.nbytes > LARGEST:
            raise pickle.PicklingError(f"an array of {thing.nbytes:,} bytes takes longer to read than a program to trace")
        return NotImplemented


@functools.cache
def known(module: str) -> bool:
    """Whether a change of the module's source would change a key: it is ours, installed, or Python's own."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module in sys.builtin_module_names or module.startswith("namedtuple_")
    roots = [PACKAGE, *(pathlib.Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))]
    return any(root in pathlib.Path(file).parents for root in roots)


# Compiling, and knowing whether it was done ----------------------------------------------------------------------------

_heard = threading.local()


@functools.cache
def _listen() -> None:
    def hear(event: str, **_: Any) -> None:
        _heard.last = {"/compile_requests_use_cache": "asked", "/cache_hits": "found"}.get(
            event.removeprefix("/jax/compilation_cache"), getattr(_heard, "last", None)
        )

    jax.monitoring.register_event_listener(hear)


def _compile(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, bool]:
    """(program, whether it was compiled here and now: JAX's cache was asked and has not found it).

    One that JAX read from its own cache must not be serialised again: of a CPU's, functions would be missing.
    """
    _listen()
    _heard.last = None
    return lowered.compile(), _heard.last == "asked"


# Files ----------------------------------------------------------------------------------------------------------------


def _load(note: str | None, arguments: tuple, result: Any, devices: Sequence[jax.Device], names: list[str]) -> Callable | None:
    if note is None:
        return None
    try:
        told = json.loads(_read(folder() / f"{note}.json"))
        structures = jax.tree.structure((arguments, {})), jax.tree.structure(result)
        body = _read(folder() / told["program"])
        program = serialize_executable.deserialize_and_load(body, *structures, execution_devices=list(devices))
    except Exception:  # absent, of another version, damaged: it is compiled again
        return None
    names[:] = told["names"]
    return program


def _save(note: str, text: str, program: jax.stages.Compiled | None, names: list[str]) -> None:
    """Keep a program, or only a note where it is kept already. Where that fails it is compiled again next time, no more."""
    with contextlib.suppress(Exception):  # no room, no right to write, a program that cannot be serialised
        if program is not None:
            _write(folder() / text, serialize_executable.serialize(program)[0])
        if (folder() / text).exists():
            _write(folder() / f"{note}.json", json.dumps({"program": text, "names": names}).encode())


def _read(path: pathlib.Path) -> bytes:
    """The file's content. Only this user's own: it is unpickled, and run."""
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path}: belongs to another user")
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        path.unlink()
        raise ValueError(f"{path}: damaged")
    with contextlib.suppress(OSError):  # a folder that others own
        os.utime(path)
    return body


def _write(path: pathlib.Path, body: bytes) -> None:
    """Write a file whole or not at all, and remove those used longest ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="new-", delete=False) as file:
        file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    os.replace(file.name, path)
    for old in sorted(path.parent.iterdir(), key=lambda path: path.stat().st_mtime)[:-MOST]:
        old.unlink(missing_ok=True)
