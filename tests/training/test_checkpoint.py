"""Checkpoints: what is kept, what is found damaged, what a failed save does, and parameters alone."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.training import checkpoint as checkpoints
from ssl_jax.training.checkpoint import Checkpoints, complete_steps, damage, export, load_params, read_arrays
from ssl_jax.training.exceptions import SaveFailed
from ssl_jax.training.settings import CheckpointSettings
from ssl_jax.training.state import State


def tree(step):
    value = lambda *shape: jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape) + step
    params = {"block00": {"kernel": value(3, 4)}, "bias": value(4)}
    guard = {"skipped": jnp.int32(3), "mean": jnp.float32(0.5)}
    return State(jnp.int32(step), params, {"mu": value(5)}, None, {"lr": jnp.float32(step)}, guard)


def filled(directory, steps=(1, 2, 3), **settings):
    kept = Checkpoints(directory, CheckpointSettings(**{"keep": 10, **settings}))
    for step in steps:
        kept.save(step, tree(step), {"note": step})
    kept.close()
    return kept


def restored(directory):
    kept = Checkpoints(directory, CheckpointSettings())
    step = kept.newest()
    if step is None:
        return None
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree(0))
    state, extra = kept.restore(step, abstract)
    jax.tree.map(np.testing.assert_array_equal, state, tree(step))
    assert extra["note"] == step
    return step


def files(folder):
    """The checkpoint's array files, largest first."""
    found = [p for p in (folder / "state").rglob("*") if p.is_file() and "/d/" in str(p)]
    return sorted(found, key=lambda p: -p.stat().st_size)


@pytest.mark.parametrize("limit", [0, 2**28])
def test_what_is_saved_is_restored_bit_for_bit(tmp_path, monkeypatch, limit):
    """Packed or not, and written one way, read the other."""
    monkeypatch.setattr(checkpoints, "PACKED_BYTES", limit)
    filled(tmp_path)
    monkeypatch.setattr(checkpoints, "PACKED_BYTES", 2**28 - limit)
    assert restored(tmp_path) == 3
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path)[1], tree(3).params)
    assert checkpoints.load_variables(tmp_path) == {}  # this task has none


@pytest.mark.parametrize("limit", [0, 2**28])
def test_saving_while_the_state_is_donated_keeps_the_values(tmp_path, monkeypatch, limit):
    """The next steps reuse the state's memory while the save is still writing it."""
    monkeypatch.setattr(checkpoints, "PACKED_BYTES", limit)
    kept = Checkpoints(tmp_path, CheckpointSettings(keep=100))
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {"params": {"w": jnp.zeros((512, 512))}}
    for number in range(12):
        kept.save(number, state, {})
        for _ in range(3):
            state = step(state)
    kept.close()
    for number in range(12):
        _, params = load_params(tmp_path, number)
        np.testing.assert_array_equal(params["w"], np.full((512, 512), 3 * number, np.float32))


@pytest.mark.parametrize(
    "settings, left",
    [
        (dict(keep=2), [8, 9]),
        (dict(keep=1, keep_every=4), [0, 4, 8, 9]),
        (dict(keep=1, best="probe/accuracy"), [3, 9]),
        (dict(keep=1, best="probe/accuracy", mode="min"), [0, 9]),
    ],
)
def test_retention(tmp_path, settings, left):
    kept = Checkpoints(tmp_path, CheckpointSettings(**settings))
    for step in range(10):
        score = -((step - 3) ** 2) if step else -99
        kept.save(step, tree(step), {"evaluated": step, "evaluation": {"probe/accuracy": score}})
    kept.close()
    assert complete_steps(tmp_path) == left


def truncate(folder):
    file = files(folder)[0]
    file.write_bytes(file.read_bytes()[:-10])


def flip(folder):
    file = files(folder)[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


FAULTS = {
    "an array file truncated": truncate,
    "one bit of an array flipped": flip,
    "an array file deleted": lambda folder: files(folder)[0].unlink(),
    "Orbax's metadata deleted": lambda folder: (folder / "state" / "_METADATA").unlink(),
    "the manifest deleted": lambda folder: (folder / "manifest.json").unlink(),
    "the manifest emptied": lambda folder: (folder / "manifest.json").write_text(""),
    "the manifest is noise": lambda folder: (folder / "manifest.json").write_bytes(b"\x00\xff[1, 2"),
    "the manifest is a list": lambda folder: (folder / "manifest.json").write_text("[1, 2]"),
    "the record deleted": lambda folder: (folder / "extra.json").unlink(),
    "all arrays deleted": lambda folder: shutil.rmtree(folder / "state"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_checkpoint_is_named_kept_aside_and_the_one_before_used(tmp_path, fault, capsys):
    filled(tmp_path)
    FAULTS[fault](tmp_path / "00000003")
    assert restored(tmp_path) == 2
    message = capsys.readouterr().err
    assert "00000003" in message and "damaged" in message and len(message.splitlines()) == 1
    assert (tmp_path / "damaged" / "00000003").is_dir() and complete_steps(tmp_path) == [1, 2]


def test_all_damaged_means_from_the_start(tmp_path, capsys):
    filled(tmp_path)
    for step in (1, 2, 3):
        truncate(tmp_path / f"{step:08d}")
    assert restored(tmp_path) is None and len(capsys.readouterr().err.splitlines()) == 3


def test_a_directory_full_of_noise(tmp_path, capsys):
    filled(tmp_path)
    (tmp_path / "00000009").mkdir()
    (tmp_path / "00000008").write_text("a file")
    (tmp_path / "12").mkdir()
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "saving-00000007/state").mkdir(parents=True)
    (tmp_path / "saving-00000006").mkdir()
    (tmp_path / "deleting-00000001").mkdir()
    (tmp_path / "ünïcode \n name").mkdir()
    assert restored(tmp_path) == 3
    assert not list(tmp_path.glob("deleting-*")) and not list(tmp_path.glob("saving-*"))
    assert (tmp_path / "readme.txt").exists() and (tmp_path / "12").exists()


@pytest.mark.parametrize("step", ["in the foreground", "behind the loop"])
def test_a_save_that_raises_is_never_only_logged(tmp_path, monkeypatch, step):
    kept = Checkpoints(tmp_path, CheckpointSettings())
    kept.save(1, tree(1), {"note": 1})
    kept.wait()
    if step == "behind the loop":

        def broken(folder):
            raise OSError("the disk is on fire")

        monkeypatch.setattr(checkpoints, "manifest", broken)
        kept.save(2, tree(2), {})
        with pytest.raises(SaveFailed, match="the disk is on fire"):
            kept.wait()
    else:
        (tmp_path / "saving-00000002").write_text("in the way")
        with pytest.raises(SaveFailed, match="saving-00000002"):
            kept.save(2, tree(2), {})
    assert complete_steps(tmp_path) == [1]
    assert Checkpoints(tmp_path, CheckpointSettings()).newest() == 1


def test_parameters_alone(tmp_path):
    filled(tmp_path / "run")
    step, params = load_params(tmp_path / "run")
    assert step == 3
    jax.tree.map(np.testing.assert_array_equal, params, tree(3).params)
    assert load_params(tmp_path / "run", 1)[1]["bias"][0] == 1
    export(tmp_path / "run", tmp_path / "export", 2)
    step, params = load_params(tmp_path / "export")
    assert step == 2
    jax.tree.map(np.testing.assert_array_equal, params, tree(2).params)
    names = list(read_arrays(tmp_path / "export/00000002"))
    assert names and all(name.startswith("params/") for name in names)


def test_the_moving_average_is_preferred(tmp_path):
    kept = Checkpoints(tmp_path, CheckpointSettings())
    kept.save(4, {"params": {"w": jnp.zeros(2)}, "ema": {"w": jnp.ones(2)}}, {})
    kept.close()
    assert load_params(tmp_path)[1]["w"][0] == 1 and load_params(tmp_path, average=False)[1]["w"][0] == 0


def test_parameters_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_params(tmp_path)
    filled(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 7; use one of 1, 2, 3"):
        load_params(tmp_path, 7)
    with pytest.raises(UserError, match="no moving average"):
        load_params(tmp_path, average=True)
    truncate(tmp_path / "00000003")
    assert damage(tmp_path / "00000003") is not None and load_params(tmp_path)[0] == 2
    with pytest.raises(UserError, match="is damaged"):
        load_params(tmp_path, 3)


def test_a_checkpoint_of_another_model_is_a_user_error(tmp_path):
    filled(tmp_path)
    kept = Checkpoints(tmp_path, CheckpointSettings())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    other = {"params": {"another": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=device)}}
    with pytest.raises(UserError, match="does not fit this config"):
        kept.restore(3, other)
