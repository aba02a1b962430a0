"""Commands in the environments that schedulers, containers, cron and terminals give them: no traceback, nothing lost."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax import cache
from ssl_jax.training.checkpoint import complete_steps
from tests.reliability.processes import COMMAND, ROOT

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict(dict(seed=0, training=dict(duration="3 steps", log_every=1), optimizer=dict(lr=1e-3)))
    c.data = dict(train="npz:{0}/data.npz", test="npz:{0}/data.npz", batch_size=8)
    c.task = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))
    c.model = dict(name="vit", patch_size=4, width=8, depth=1, heads=2)
    c.downstream = dict(knn=dict(k=3))
    return c
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    image = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    np.savez(folder / "data.npz", image=image, label=np.arange(32, dtype=np.int32) % 2)
    (folder / "config.py").write_text(CONFIG.format(folder))
    return folder


def shell(line: str, cwd: pathlib.Path, **environment: str | None) -> subprocess.CompletedProcess:
    """Run a line of bash in `cwd`; None removes a variable."""
    flags = "--xla_backend_optimization_level=0"
    defaults = {"SSL_JAX_CACHE": str(ROOT / ".pytest_cache/compiled"), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    variables = {**os.environ, **defaults, "JAX_NUM_CPU_DEVICES": "1", **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(["bash", "-c", line], env=variables, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_run_needs_no_stream_no_encoding_and_no_home(folder, tmp_path):
    """stdin and stderr are closed, stdout is ASCII, HOME and XDG_CACHE_HOME are unset or empty, 64 bits are asked for."""
    command = f"{COMMAND} run --config={folder}/config.py --workdir=run"
    line = f"{command} 2>&- <&-"
    environment = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "XDG_CACHE_HOME": "", "JAX_ENABLE_X64": "1"}
    done = shell(line, tmp_path, **environment)
    assert done.returncode == 0, done.stdout
    assert (
        complete_steps(tmp_path / "run/checkpoints") == [3]
        and "knn" in done.stdout
        and (tmp_path / "run/report.html").is_file()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    again = shell(command, tmp_path, **environment)
    assert again.returncode == 0 and "the run is complete" in again.stdout and not again.stderr


def test_a_run_outlives_the_reader_of_its_output(folder, tmp_path):
    """`ssl-jax ... | head -1`, a pager that is left, a terminal that is closed: output is dropped and training goes on."""
    line = f"{COMMAND} pretrain --config={folder}/config.py --workdir=run 2>&1 | true; exit ${{PIPESTATUS[0]}}"
    done = shell(line, tmp_path)
    assert done.returncode == 0 and complete_steps(tmp_path / "run/checkpoints") == [3]


STREAMS = """
import os, sys
from ssl_jax import streams
streams.open_closed()
opened = open({file!r}, "w")
print("out \\u2014"), print("err \\u2014", file=sys.stderr, flush=True), os.write(2, b"a library writes to descriptor 2")
assert sys.stdin.read() == "" and opened.fileno() > 2
"""


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_file_never_gets_the_descriptor_of_a_closed_stream(tmp_path, closed):
    """Otherwise what a library writes to descriptor 2 lands in the next file that was opened, such as a checkpoint."""
    code = STREAMS.format(file=str(tmp_path / "file"))
    (tmp_path / "code.py").write_text(code)
    line = f"{sys.executable} code.py {closed}" + ("" if "<&-" in closed else " < /dev/null")
    done = shell(line, tmp_path, PYTHONPATH=str(ROOT), PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("value", ["", ".", "cache"])
def test_a_cache_directory_that_is_not_absolute_is_ignored(monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.user_cache() == pathlib.Path("/home/someone/.cache/ssl_jax")


def test_without_a_home_the_cache_lasts_as_long_as_the_process(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it returns for a user without an entry
    assert cache.user_cache().is_dir() and cache.user_cache().is_absolute() and cache.user_cache() == cache.user_cache()
