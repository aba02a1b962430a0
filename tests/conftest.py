"""One CPU device; tests that need more start a child process. What XLA compiles is shared by all test processes, and by the
next run of the tests. With SSL_JAX_CHECK_TYPES=1 every annotation of ssl_jax, the shapes of arrays among them, is checked while
the tests run, inside jit too."""

import gc
import os
import pathlib
import signal
import subprocess
import sys

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Most tests compile longer than they compute. Without LLVM's optimizations, with XLA's older code generator for fusions, and
# with one LLVM module a program instead of one a thread, they take far less processor time and are as exact.
FLAGS = "--xla_backend_optimization_level=0"
if jaxlib.version.__version_info__ < (0, 11):  # XLA ends the process at a flag that a later version no longer knows
    FLAGS += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", FLAGS)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # programs need not say which lines they were traced from
gc.set_threshold(50_000, 20, 20)  # tracing makes many objects, few of them garbage, and looking for it takes time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job, and so in its children
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup

if os.environ.get("SSL_JAX_CHECK_TYPES") == "1":
    from jaxtyping import install_import_hook

    import tests.typecheck  # noqa: F401

    install_import_hook("ssl_jax", "tests.typecheck.checked")

import jax  # noqa: E402
import pytest  # noqa: E402

from ssl_jax import start  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("SSL_JAX_CACHE", str(ROOT / ".pytest_cache" / "compiled"))
jax.config.update("jax_compilation_cache_dir", str(start.cache_directory()))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def child():
    """Runs Python code in a child process with `devices` fake CPU devices; returns what it prints, fails when it fails."""

    def run(code: str, *, devices: int = 1, timeout: int = 300) -> str:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"the child failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
