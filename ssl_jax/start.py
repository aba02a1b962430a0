"""Start a process: join the others, choose platform and devices, enable the compilation cache.

Every command of `ssl-jax` calls `start_process` before anything asks JAX for a device; `import ssl_jax` never does.
"""

import functools
import os
import pathlib
import platform
import sys
import zlib

import jax

from ssl_jax import cpu, devices
from ssl_jax.cache import user_cache
from ssl_jax.errors import UserError
from ssl_jax.streams import quiet_libraries


@functools.cache
def start_process() -> str:
    """Set this process up for a run, once, and return one line that names the devices it runs on.

    The order matters: processes can only be joined, and a CPU's cores can only become devices, before JAX creates its
    backend at the first query of a device.
    Commands compute in 32 bits regardless of JAX_ENABLE_X64: parameters are f32 and indices i32 in every checkpoint.
    Raise UserError for incomplete process variables and for a missing platform.
    """
    quiet_libraries()
    jax.config.update("jax_enable_x64", False)
    join_processes()
    cpu.configure()
    found = find_devices()
    cpu.keep_freed_memory()
    enable_cache()
    return describe(found)


def join_processes() -> None:
    """Join the processes of a run if the environment describes several.

    SLURM, Open MPI, GKE and TPU pods are recognised by JAX. By hand, set JAX_COORDINATOR_ADDRESS=host:port,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    if joined():
        return
    environment = os.environ
    by_hand = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [name for name in by_hand if environment.get(name)]
    if "JAX_NUM_PROCESSES" in given or "JAX_PROCESS_ID" in given:
        for name in by_hand:
            if name not in given:
                raise UserError(f"{name} is not set, but {given[0]} is; a run of several processes needs {', '.join(by_hand)}")
        address = environment["JAX_COORDINATOR_ADDRESS"]
        number, count = _whole("JAX_PROCESS_ID", 0), _whole("JAX_NUM_PROCESSES", 1)
        if number >= count:
            raise UserError(f"JAX_PROCESS_ID={number}: must lie from 0 to JAX_NUM_PROCESSES - 1 = {count - 1}")
        if count > 1:
            _initialize(address, count, number)
    elif _by_scheduler():
        _initialize()


def _by_scheduler() -> bool:
    """Return whether SLURM, Open MPI or a TPU pod started several processes."""
    environment = os.environ
    slurm = "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment and _whole("SLURM_NTASKS", 1, 1) > 1
    return slurm or _whole("OMPI_COMM_WORLD_SIZE", 1, 1) > 1 or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def _whole(name: str, least: int, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if text == "" and default is not None:
        return default
    if not text.isdigit() or int(text) < least:
        raise UserError(f"{name}={text!r}: must be a whole number of at least {least}")
    return int(text)


def _initialize(*arguments) -> None:
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"joining the processes of this run failed: {line}; check JAX_COORDINATOR_ADDRESS") from error


def joined() -> bool:
    """Return whether this process is one of several."""
    from jax._src import distributed  # the public module does not say in every version whether it was initialised

    return distributed.global_state.client is not None


def end_failed(status: int) -> None:
    """End this failed process of several at once with `status`, unless all of them have failed; else do nothing.

    Python's normal end would wait five minutes for the others, which wait for this one inside a collective. Without this
    process their collectives fail, or its missing heartbeats end them.
    """
    from jax._src import distributed

    try:
        distributed.global_state.client.wait_at_barrier("ssl_jax/failed", 10_000)  # milliseconds
    except jax.errors.JaxRuntimeError:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def find_devices() -> list[jax.Device]:
    """Return all devices; raise UserError if JAX_PLATFORMS names a missing platform."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0] if str(error) else "this machine has no such device, or its plugin is not installed"
        raise UserError(
            f"JAX_PLATFORMS={jax.config.jax_platforms or ''}: {line}; unset it to use an available platform"
        ) from error


def describe(found: list[jax.Device]) -> str:
    """Return the devices as text: "2 CPU devices (AMD EPYC, AVX2)", "8 x NVIDIA H100 80GB HBM3; process 0 of 2"."""
    first = found[0]
    if first.platform == "cpu":
        text = f"{len(found)} CPU device{'s' * (len(found) > 1)} ({devices.processor()})"
    else:
        text = f"{len(found)} x {first.device_kind}" if len(found) > 1 else first.device_kind
    return text if jax.process_count() == 1 else f"{text}; process {jax.process_index()} of {jax.process_count()}"


# The compilation cache --------------------------------------------------------------------------------------------------


def cache_directory() -> pathlib.Path:
    """Return where compiled programs are cached: below $SSL_JAX_CACHE, else the user's cache; one folder for each processor.

    Code that XLA builds for one CPU's features crashes on another, so on a CPU the folder's name holds a hash of them.
    """
    base = os.environ.get("SSL_JAX_CACHE") or user_cache()
    key = f"jax-{jax.__version__}-{jax.default_backend()}"
    if jax.default_backend() == "cpu":
        key += f"-{_processor_hash():08x}"
    return pathlib.Path(base).expanduser() / "xla" / key


def _processor_hash() -> int:
    described = "\n".join(devices.cpuinfo()) or platform.processor() + platform.machine()
    return zlib.crc32(f"{described} {os.environ.get('XLA_FLAGS', '')}".encode())


def enable_cache() -> None:
    """Turn on JAX's compilation cache unless JAX_COMPILATION_CACHE_DIR is set or SSL_JAX_CACHE is "off".

    Without a directory that can be written (a read-only disk), every process compiles its programs anew.
    """
    if jax.config.jax_compilation_cache_dir or os.environ.get("SSL_JAX_CACHE") == "off":
        return
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: pathlib found no home
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
