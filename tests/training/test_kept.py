"""Programs that are found on disk without being traced: the same results, and nothing found that has become another."""

import functools
import os
import types

import jax
import numpy as np
import pytest

from ssl_jax.training import kept

CHILD = """
import jax, numpy as np
from ssl_jax import config as configs
from ssl_jax import runs
from ssl_jax.training import kept

SMALL = {"model.width": "24", "model.heads": "2", "model.depth": "2", "training.steps_per_call": "2", "data.batch_size": "4"}

def run(**changes):
    trainer = runs.trainer_of(runs.prepare(configs.load("configs/gpt/shakespeare_char_cpu.py", SMALL | changes)))
    return trainer, jax.device_get(trainer.run(seed=3, total_steps=4, quiet=True))

def files(kind):
    return {p.name for p in kept.folder().iterdir() if p.suffix == kind}

def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
"""


def traced(self, *arguments, **options):
    raise AssertionError("traced")


@pytest.fixture
def in_child(child, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    return lambda code: child(CHILD + code)


def test_a_second_start_traces_nothing_and_trains_the_same_to_the_last_bit(in_child):
    first = """
trainer, state = run()
np.save("{path}", np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)]))
print(*trainer.step.names)
"""
    second = """
def traced(*arguments, **options):
    raise AssertionError("traced")

import flax.linen as nn
nn.Module.init = nn.Module.apply = traced
"""
    path = f"{os.environ['SSL_JAX_CACHE']}/{{}}.npy"
    names = in_child(first.format(path=path.format("first")))
    assert names.split()[0] == "loss"
    assert in_child(second + first.format(path=path.format("second"))) == names
    np.testing.assert_array_equal(np.load(path.format("first")), np.load(path.format("second")))


def test_what_has_changed_or_is_damaged_is_made_again(in_child):
    in_child("""
_, first = run()
programs, notes = files(""), files(".json")
assert len(programs) == 2 and len(notes) == 2, (programs, notes)  # the state's making, and two steps

import functools
kept.source = functools.partial(str, "other source of the same programs")
_, again = run()
assert same(first, again) and files("") == programs and len(files(".json")) == 4

_, other = run(**{"optimizer.clip": "0.01"})
assert not same(first, other) and len(files("")) == 3  # the state is made as before

for path in kept.folder().iterdir():
    path.write_bytes(path.read_bytes()[:-1] + b"?")
_, mended = run()
assert same(first, mended)
""")


# Keys ----------------------------------------------------------------------------------------------------------------

ENVIRONMENT = ["one"]
SHAPE = jax.ShapeDtypeStruct((2, 3), "float32")


@pytest.fixture
def somewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(kept, "folder", lambda: tmp_path)
    return tmp_path


def test_a_note_tells_everything_apart_that_makes_a_program(somewhere, monkeypatch):
    base = ({"rate": 0.1, "table": np.arange(3)}, (SHAPE,), ENVIRONMENT)
    notes = [
        kept._note(*base),
        kept._note({"rate": 0.2, "table": np.arange(3)}, *base[1:]),
        kept._note({"rate": 0.1, "table": np.array([0, 1, 3])}, *base[1:]),
        kept._note({"rate": 0.1, "table": np.arange(3), "kind": types.SimpleNamespace}, *base[1:]),
        kept._note(base[0], (SHAPE, SHAPE), ENVIRONMENT),
        kept._note(base[0], (jax.ShapeDtypeStruct((2, 3), "bfloat16"),), ENVIRONMENT),
        kept._note(base[0], (jax.ShapeDtypeStruct((3, 2), "float32"),), ENVIRONMENT),
        kept._note(*base[:2], ["another"]),
    ]
    monkeypatch.setattr(kept, "source", lambda: "changed")
    notes.append(kept._note(*base))
    assert None not in notes and len(set(notes)) == len(notes)


def test_the_environment_holds_the_settings_of_jax(monkeypatch):
    before = kept._environment(jax.devices())
    with jax.default_matmul_precision("highest"):
        assert kept._environment(jax.devices()) != before
    assert kept._environment(jax.devices()) == before
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert kept._environment(jax.devices()) != before


def test_code_whose_source_may_change_unseen_has_no_key(somewhere):
    def here():
        pass

    for objects in (traced, functools.partial(kept._digest, traced), types.SimpleNamespace(f=here), lambda: 0):
        assert kept._note(objects, (SHAPE,), ENVIRONMENT) is None
    assert kept._note(np.zeros(kept.LARGEST // 8 + 1), (SHAPE,), ENVIRONMENT) is None
    assert kept._note(functools.partial(kept._digest, np.mean), (SHAPE,), ENVIRONMENT) is not None


def test_shapes_are_traced_once(somewhere):
    made = []
    trace = lambda: made.append(1) or {"kernel": SHAPE}
    assert [kept.shapes(trace, traced="a", arguments=(SHAPE,)) for _ in range(2)] == [{"kernel": SHAPE}] * 2 and len(made) == 1
    (path,) = somewhere.iterdir()
    path.write_bytes(b"damaged")
    assert kept.shapes(trace, traced="a", arguments=(SHAPE,)) == {"kernel": SHAPE} and len(made) == 2
    path.write_bytes(b"damaged")
    somewhere.chmod(0o500)  # nor can it be written
    assert kept.shapes(trace, traced="a", arguments=(SHAPE,)) == {"kernel": SHAPE} and len(made) == 3
    somewhere.chmod(0o700)


def test_a_change_put_into_our_modules_from_elsewhere_is_noticed(monkeypatch):
    """A registry or a method changed from a notebook has no key, other constants and other packages' functions another one."""
    from ssl_jax.models import layers

    before = kept.package()
    assert isinstance(before, list) and kept.package() == before
    with monkeypatch.context() as change:
        change.setitem(layers.ACTIVATIONS, "mine", lambda x: x)
        assert isinstance(kept.package(), kept.Unknown)
    with monkeypatch.context() as change:
        change.setattr(layers.Norm, "__call__", traced)
        assert isinstance(kept.package(), kept.Unknown)
    with monkeypatch.context() as change:
        change.setitem(layers.ACTIVATIONS, "gelu", np.tanh)
        assert kept.package() != before
    with monkeypatch.context() as change:
        change.setattr(layers.TransformerConfig, "norm_eps", 1e-3)
        assert kept.package() != before
    assert kept.package() == before


def test_source_edited_after_it_was_imported_has_no_key_and_leaves_nothing(somewhere, monkeypatch):
    """What is in memory is then not what a digest of the files says; nor may a file change while something is traced."""
    import ssl_jax

    base = (1, (SHAPE,), ENVIRONMENT)
    assert not kept.edited() and kept._note(*base) is not None
    newest = max(path.stat().st_mtime for path in kept.files())

    def trace():
        monkeypatch.setattr(ssl_jax, "_imported_at", newest - 1)  # as if a file had been saved a second later
        return {"kernel": SHAPE}

    kept.shapes(trace, traced="a", arguments=(SHAPE,))
    assert kept.edited() and kept._note(*base) is None and not list(somewhere.iterdir())


def test_what_is_not_known_has_no_key(somewhere):
    assert kept._note((1, kept.Unknown()), (SHAPE,), ENVIRONMENT) is None


def test_the_files_used_longest_ago_go_first(somewhere, monkeypatch):
    monkeypatch.setattr(kept, "MOST", 2)
    for name in ("old", "used", "new"):
        if name == "new":
            assert kept._read(somewhere / "used") == b"used"
        kept._write(somewhere / name, name.encode())
        if name != "new":
            os.utime(somewhere / name, (1, 1) if name == "old" else (2, 2))
    assert {path.name for path in somewhere.iterdir()} == {"used", "new"}
