"""Every array annotation of ssl_jax is checked while the tests run, inside jit too. One CPU device; tests that need more
start a child process with `fake_devices`."""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from jaxtyping import install_import_hook  # noqa: E402

import tests.typecheck  # noqa: E402, F401

install_import_hook("ssl_jax", "tests.typecheck.checked")

import pytest  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]


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
