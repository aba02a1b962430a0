"""`ssl-jax convert` and `ssl_jax.load("hf:DIR")`: files to files, and what is refused."""

import json
import pickle
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

import ssl_jax
from ssl_jax import cli
from ssl_jax.errors import UserError
from ssl_jax.interop.convert import exported, hindrance, load_pretrained, task_class
from ssl_jax.task import DataInfo
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.rules import flatten
from ssl_jax.training.settings import CheckpointSettings
from ssl_jax.workdir import Workdir
from tests.interop.interop_toys import OURS, params_of, task_of, write
from tests.keys import toy_key


@pytest.fixture
def hf(tmp_path):
    """A directory in Hugging Face layout: ViTModel."""
    task = task_of("ViTModel")
    _, theirs, tensors = exported(task, params_of(task))
    folder = write(tmp_path / "hf", theirs, tensors)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def convert(source, target):
    return cli.main(["convert", f"--from={source}", f"--to={target}"])


def test_there_and_back_and_in_memory(hf, tmp_path, capsys):
    assert convert(f"hf:{hf}", tmp_path / "run") == 0
    assert convert(tmp_path / "run", f"hf:{tmp_path / 'again'}") == 0
    assert "ViTModel" in capsys.readouterr().out
    before, after = load_file(hf / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert set(before) == set(after) and all(before[k].tobytes() == after[k].tobytes() for k in before)
    processor = json.loads((tmp_path / "again" / "preprocessor_config.json").read_text())
    assert processor["image_mean"] == [0.5, 0.4, 0.3] and processor["size"] == {"height": 6, "width": 8}
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3)).astype(np.uint8)
    a, b = ssl_jax.load(f"hf:{hf}").forward({"image": images}), ssl_jax.load(tmp_path / "run").forward({"image": images})
    assert a["tokens"].shape == (2, 13, 12) and a["pooled"].shape == (2, 12)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("architecture", OURS)
def test_what_hinders_an_export_is_known_before_training(architecture):
    """Nothing for a model that can be exported; else the setting that the export refuses."""
    assert hindrance(task_of(architecture)) is None


def test_a_setting_that_hinders_an_export_is_named():
    for architecture, changes, setting in (
        ("ViTMAEForPreTraining", dict(class_token=False), "model.class_token=False: ViTMAEForPreTraining has True"),
        ("BertForMaskedLM", dict(norm_position="pre"), "model.norm_position='pre': BertForMaskedLM has 'post'"),
        ("LlamaForCausalLM", dict(gated=False), "model.gated=False: LlamaForCausalLM has True"),
    ):
        task = task_of(architecture, **changes)
        assert setting in hindrance(task)
        with pytest.raises(UserError, match="cannot hold this model"):
            exported(task, params_of(task))


def test_several_files_with_an_index_and_half_precision(hf, tmp_path):
    tensors = load_file(hf / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({n: tensors[n].astype(ml_dtypes.bfloat16) for n in held}, hf / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    (hf / "model.safetensors").unlink()
    params = flatten(load_pretrained(hf)[1])
    expected = tensors["layernorm.weight"].astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (
        np.array_equal(params["encoder/final_norm/scale"], expected) and params["encoder/final_norm/scale"].dtype == np.float32
    )
    (hf / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ssl_jax.errors.UserError, match="model-00002"):
        load_pretrained(hf)


class Harmful:
    def __reduce__(self):
        return sys.exit, ("code of a pickle ran",)


def without(folder, name):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")


def with_shape(folder, name, shape):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, folder / "model.safetensors")


def edited(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Harmful()}))


BAD = {
    "no model directory": (lambda d: (d / "config.json").unlink(), ["config.json is missing"]),
    "a missing tensor": (lambda d: without(d, "layernorm.weight"), ["lacks layernorm.weight"]),
    "an unknown tensor": (lambda d: with_shape(d, "embeddings.extra", (3,)), ["embeddings.extra"]),
    "another shape": (lambda d: with_shape(d, "layernorm.weight", (13,)), ["layernorm.weight", "[13]", "[12]"]),
    "a truncated file": (truncated, ["model.safetensors", "damaged"]),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), ["holds no weights"]),
    "an unknown architecture": (
        lambda d: edited(d, architectures=["ResNetForImageClassification"]),
        ["ResNetForImageClassification", "ViTModel"],
    ),
    "a pickle": (pickled, []),
    "another patch": (lambda d: edited(d, patch_size=4), ["patch_embeddings", "[12, 3, 2, 2]", "[12, 3, 4, 4]"]),
    "a patch larger than the image": (lambda d: edited(d, patch_size=7), ["patch_size=7", "6 x 8"]),
    "a number that is text": (lambda d: edited(d, num_channels="3"), ["num_channels='3'"]),
    "a size beyond all memory": (lambda d: edited(d, num_channels=10**9), ["values, expected 48,000,000,000 by config.json"]),
    "an activation that is a list": (lambda d: edited(d, hidden_act=["gelu"]), ["hidden_act=['gelu']"]),
    "a width that is text": (lambda d: edited(d, hidden_size="12"), ["width='12'"]),
    "no architecture": (lambda d: edited(d, architectures=None, model_type=None), ["architectures", "model_type"]),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), ["config.json", "JSON"]),
    "a negative size": (lambda d: edited(d, hidden_size=-12), ["width=-12"]),
    "text for a number": (lambda d: edited(d, num_hidden_layers="two"), ["depth='two'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_writes_nothing(name, hf, tmp_path, capsys):
    spoil, said = BAD[name]
    spoil(hf)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert convert(f"hf:{hf}", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("ssl-jax: ")
    if name == "a pickle":
        assert "not loaded" in error or "pip install torch" in error
    else:
        assert all(part in error for part in said), error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_sources_and_targets_that_are_none(hf, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    for source, target in (
        (f"hf:{tmp_path / 'nowhere'}", tmp_path / "run"), (tmp_path / "nowhere", f"hf:{tmp_path / 'out'}"),
        (hf, tmp_path / "run"), (f"hf:{hf}", f"hf:{tmp_path / 'out'}"), (f"hf:{hf}", tmp_path / "full"),
        (f"hf:{hf}", tmp_path / "file"), (tmp_path / "none.pth", tmp_path / "run"),
    ):  # fmt: skip
        assert convert(source, target) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("ssl-jax: "), error
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_failure_while_writing_leaves_nothing(hf, tmp_path, monkeypatch):
    from ssl_jax.training.checkpoint import Checkpoints

    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(Checkpoints, "save", fail)
    with pytest.raises(OSError):
        convert(f"hf:{hf}", tmp_path / "deep" / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


# Tasks that train an encoder ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model", "architecture", "left_out"),
    [
        ("ijepa", dict(class_token=False), "IJepaModel", "predictor"),
        ("self_distillation", dict(pooling="cls"), "ViTModel", "head"),
        (
            "self_distillation",
            dict(pooling="cls", layer_scale=0.1, mlp_width=24, registers=2),
            "Dinov2WithRegistersModel",
            "head",
        ),
    ],
)
def test_the_teacher_of_a_task_goes_out_as_an_encoder(name, model, architecture, left_out, tmp_path, capsys):
    """What the paper evaluates is written: the moving average's encoder, without what only the task needs."""
    own = dict(
        ijepa=dict(predictor=dict(width=8, depth=1, heads=2)), self_distillation=dict(prototypes=6, hidden=5, bottleneck=4)
    )
    vit = dict(name="vit", patch_size=2, width=12, depth=2, heads=3, mlp_width=20) | model
    config = ConfigDict(dict(task=dict(name=name, **own[name]), model=vit, data={}, training={}, optimizer={}))
    shapes = {"image": (8, 8, 3), "globals": (2, 8, 8, 3)}
    info = DataInfo(
        {key: jax.ShapeDtypeStruct(shape, np.float32) for key, shape in shapes.items()}, mean=(0.5,) * 3, std=(0.2,) * 3
    )
    task = task_class(config).from_config(config, info)
    student, teacher = (jax.jit(task.init)(toy_key(i), {}) for i in (0, 1))
    Workdir(tmp_path / "run").start(config, info)
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", CheckpointSettings())
    checkpoints.save(3, {"params": student, "ema": teacher}, {})
    checkpoints.close()
    assert convert(tmp_path / "run", f"hf:{tmp_path / 'hf'}") == 0
    said = capsys.readouterr().out
    assert architecture in said and f"without the task's own: {left_out}" in said
    image = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    expected = jax.jit(task.features)(teacher, {"image": image})
    found = ssl_jax.load(f"hf:{tmp_path / 'hf'}").features({"pixel_values": image})
    np.testing.assert_allclose(found["tokens"], expected["tokens"], atol=1e-6)
    np.testing.assert_allclose(found["pooled"], expected["pooled"], atol=1e-6)
