"""Faults between two starts and during one: the run goes on and ends bit-equal to its twin, or stops with its reason."""

import shutil
import subprocess
import sys
import time

import pytest

from ssl_jax.training import checkpoint as checkpoints
from ssl_jax.training.checkpoint import complete_steps
from ssl_jax.training.exceptions import SaveFailed
from ssl_jax.training.loop import Trainer
from ssl_jax.training.optimizer import OptimizerSettings
from ssl_jax.training.settings import CheckpointSettings, TrainingSettings
from tests.reliability.processes import Child, assert_same_run
from tests.reliability.toys import ToyTask, toy_stream

STEPS = 20
OFTEN = CheckpointSettings(every=4, keep=3)


@pytest.fixture(scope="module")
def trainer():
    training = TrainingSettings(duration=f"{STEPS} steps", log_every=3, ema=0.9, tensorboard=False)
    optimizer = OptimizerSettings(lr=1e-2, weight_decay=0.05, warmup="10 %", clip=1.0)
    return Trainer(ToyTask(), toy_stream(), training=training, optimizer=optimizer)


@pytest.fixture(scope="module")
def twin(trainer, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("twin") / "run"
    trainer.run(seed=0, workdir=workdir, checkpoint=OFTEN, quiet=True)
    return workdir


class Killed(BaseException):
    pass


@pytest.fixture
def cut(trainer, twin, tmp_path, monkeypatch):
    """A work directory whose run ended without a word after 14 steps; checkpoints of steps 4, 8 and 12."""
    stream, host_batch = toy_stream(), trainer.program.stream.host_batch

    def until(step, rows=slice(None)):
        if step == 14:
            raise Killed
        return host_batch(step, rows)

    monkeypatch.setattr(stream, "host_batch", until)
    with pytest.raises(Killed):
        trainer.run(seed=0, workdir=tmp_path, checkpoint=OFTEN, quiet=True, stream=stream)
    while not (tmp_path / "checkpoints/00000012").exists():  # its thread is still writing
        time.sleep(0.01)
    return tmp_path


def arrays_of(folder):
    return max((p for p in (folder / "state").rglob("*") if p.is_file() and "/d/" in str(p)), key=lambda p: p.stat().st_size)


def truncate(folder):
    file = arrays_of(folder)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def noise(folder):
    for i, file in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        file.write_bytes(bytes((7 * i + 31 * j) % 256 for j in range(500)))
    (folder / "state/d").mkdir(exist_ok=True)
    (folder / "state/d/0123456789abcdef").write_bytes(b"\x00" * 1000)


def everything(folder):
    for step in complete_steps(folder.parent):
        truncate(folder.parent / f"{step:08d}")


FAULTS = {
    "an array file is truncated": (truncate, 8),
    "the metadata of the arrays is gone": (lambda folder: (folder / "state/_METADATA").unlink(), 8),
    "the manifest is gone": (lambda folder: (folder / "manifest.json").unlink(), 8),
    "the record is gone": (lambda folder: (folder / "extra.json").unlink(), 8),
    "the directory is full of noise": (noise, 8),
    "the directory is empty": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), 8),
    "no checkpoint is whole": (everything, 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_costs_steps_and_no_exactness(trainer, twin, cut, capsys, fault):
    damage, before = FAULTS[fault]
    assert complete_steps(cut / "checkpoints") == [4, 8, 12]
    damage(cut / "checkpoints/00000012")
    seen = []
    stream, host_batch = toy_stream(), trainer.program.stream.host_batch
    stream.host_batch = lambda step, rows=slice(None): (seen.append(step), host_batch(step, rows))[1]
    trainer.run(seed=0, workdir=cut, checkpoint=OFTEN, quiet=True, stream=stream)
    assert min(seen) == before and "00000012 is damaged" in capsys.readouterr().err
    assert (cut / "checkpoints/damaged/00000012").is_dir()
    assert_same_run(cut, twin)


@pytest.mark.parametrize("broken", ["manifest", "write_json", "sync_folder"])
def test_a_save_that_raises_stops_the_run_with_its_reason(trainer, twin, tmp_path, monkeypatch, broken):
    """Behind the loop's back, at step 8; started again it goes on from step 4."""
    original = getattr(checkpoints, broken)

    def fails(path, *arguments):
        if "saving-00000008" in str(path):
            raise OSError(5, "Input/output error")
        return original(path, *arguments)

    monkeypatch.setattr(checkpoints, broken, fails)
    with pytest.raises(SaveFailed, match="saving-00000008 could not be saved: .*Input/output error") as error:
        trainer.run(seed=0, workdir=tmp_path, checkpoint=OFTEN, quiet=True)
    assert "\n" not in str(error.value) and complete_steps(tmp_path / "checkpoints") == [4]
    monkeypatch.undo()
    trainer.run(seed=0, workdir=tmp_path, checkpoint=OFTEN, quiet=True)
    assert_same_run(tmp_path, twin)


def namespaces():
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


DISK = """
mount -t tmpfs -o size=7m tmpfs {disk}
{run}; echo "STATUS $?"
ls {disk}/run/checkpoints
mount -o remount,size=60m {disk}
{run}; echo "STATUS $?"
cp -r {disk}/run {copy}
"""


@pytest.mark.chaos
@pytest.mark.skipif(not namespaces(), reason="no right to mount a tmpfs in a namespace of one's own")
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path):
    """Each checkpoint takes 2.6 MB of a disk of 7."""
    (tmp_path / "disk").mkdir()
    words = "width=200 keep=9 every=6 steps=30"
    run = lambda workdir: f"{sys.executable} -m tests.reliability.run_toy {workdir} {words}"
    script = DISK.format(disk=tmp_path / "disk", run=run(tmp_path / "disk/run"), copy=tmp_path / "copy")
    child = Child(["unshare", "-rm", "sh", "-c", script])
    assert child.end() == 0, child.output
    first, rest = child.output.split("STATUS 1")
    assert "could not be saved: the disk is full; make room and run the same command again" in first, child.output
    assert "Traceback" not in child.output and "00000006" in rest and "DONE 30" in rest and "STATUS 0" in rest, child.output
    twin = Child(["sh", "-c", run(tmp_path / "twin")])
    assert twin.end() == 0, twin.output
    assert_same_run(tmp_path / "copy", tmp_path / "twin")
