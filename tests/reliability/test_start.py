"""How a process is started, through the installed command: several processes, the devices of a run, the compilation cache."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from ssl_jax import devices
from tests.task_examples import config_of, write_data

pytestmark = pytest.mark.chaos
COMMAND = f"{sys.prefix}/bin/ssl-jax"
CHOSEN = ("JAX_", "XLA_", "SLURM_", "SSL_JAX_", "XDG_")  # variables that would decide how a process starts


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A config file of a masked autoencoder on 32 images of 8 x 8 pixels, 12 steps."""
    root = tmp_path_factory.mktemp("start")
    write_data(root)
    sections = config_of("masked_image", root)[""] | dict(training=dict(duration="12 steps", log_every=1))
    text = f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({sections!r})\n"
    (root / "config.py").write_text(text)
    return root / "config.py"


def start(config, workdir, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(CHOSEN)}
    environment = {**kept, "JAX_PLATFORMS": "cpu", "SSL_JAX_CACHE": str(config.parent / "cache"), **environment}
    command = [COMMAND, "pretrain", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*children):
    outputs = [child.communicate(timeout=300)[0] for child in children]
    assert [child.returncode for child in children] == [0] * len(children), "\n".join(outputs)
    return outputs


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The losses of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(config, workdir, JAX_NUM_CPU_DEVICES="1"))
    assert len(losses(workdir)) == 12
    return losses(workdir)


def by_hand(rank, count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        by_hand.port = getattr(by_hand, "port", None) if rank else free.getsockname()[1]
    address = f"localhost:{by_hand.port}"
    return {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(rank)}


def by_slurm(rank, count):
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count)}
    return job | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost"}


@pytest.mark.parametrize("variables, count", [(by_hand, 2), (by_hand, 4), (by_slurm, 2)])
def test_several_processes_learn_what_one_learns(config, alone, tmp_path, variables, count):
    children = [start(config, tmp_path / "run", JAX_NUM_CPU_DEVICES="1", **variables(rank, count)) for rank in range(count)]
    outputs = finish(*children)
    assert f"process 0 of {count}" in outputs[0]
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=2e-5)
    assert json.loads((tmp_path / "run/config.json").read_text())["device"]["count"] == count


def test_a_process_that_fails_alone_ends_the_others(config, tmp_path):
    """Only the first of two processes finds no data: it says so, and no process waits for the five minutes of JAX's own end."""
    lacking = tmp_path / "config.py"
    lacking.write_text(
        "import os, runpy\n"
        f"complete = runpy.run_path({str(config)!r})['get_config']\n"
        "def get_config():\n"
        "    config = complete()\n"
        "    config.data.train = config.data.train if os.environ['JAX_PROCESS_ID'] == '1' else 'folder:/nowhere'\n"
        "    return config\n"
    )
    children = [start(lacking, tmp_path / "run", JAX_NUM_CPU_DEVICES="1", **by_hand(rank, 2)) for rank in range(2)]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert children[0].returncode == 2 and "folder:/nowhere: there is no such folder" in outputs[0], outputs
    assert children[1].returncode != 0


def test_a_run_uses_every_core_and_caches_what_it_compiles(config, alone, tmp_path):
    (output,) = finish(start(config, tmp_path / "run", SSL_JAX_CACHE="", XDG_CACHE_HOME=str(tmp_path / "cache")))
    count = min(devices.cores(), 4)
    assert json.loads((tmp_path / "run/config.json").read_text())["device"]["count"] == count
    assert f"{count} CPU device" in output
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=2e-5)
    assert list((tmp_path / "cache/ssl_jax/xla").glob("*/*"))


AT = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    "environment, line",
    [
        ({"JAX_PLATFORMS": "cuda"}, "JAX_PLATFORMS=cuda: "),
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is not set"),
        (AT | {"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2"),
        (AT | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES='two'"),
    ],
)
def test_an_environment_that_cannot_work_is_one_line(config, tmp_path, environment, line):
    child = start(config, tmp_path / "run", **environment)
    output = child.communicate(timeout=120)[0]
    assert child.returncode == 2 and line in output and len(output.strip().splitlines()) == 1, output
    assert not (tmp_path / "run").exists()
