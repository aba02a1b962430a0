"""Every config of a paper's size traces and lowers for a GPU and a TPU, on a host that has neither.

At one block a stack, at the paper's width and length: what can fail is a shape or a kernel, and depth changes neither.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from ssl_jax import config as configs
from ssl_jax import runs, stand_in, target
from ssl_jax.target import Target

TARGETS = {"cuda": Target("gpu", "NVIDIA H100 80GB HBM3"), "tpu": Target("tpu", "TPU v5 lite")}
LANGUAGE = {"model.depth": "1"}
TOWERS = {"model.image.depth": "1", "model.text.depth": "1"}
MAE = {"model.depth": "1", "task.decoder.depth": "1"}
# File, overrides, and how many calls of a fused kernel its forward passes make: where there are 128 keys.
CASES = {
    "mae-b": ("configs/mae/vit_imagenet.py:variant=B", MAE, 1),  # encoder 50, decoder 197 tokens
    "mae-l": ("configs/mae/vit_imagenet.py:variant=L", MAE, 1),
    "mae-h": ("configs/mae/vit_imagenet.py:variant=H", MAE, 1),  # encoder 65, decoder 257 tokens
    "fine-tuning": ("configs/mae/vit_imagenet.py:stage=finetune,variant=B", {"model.depth": "1"}, 1),  # 197 tokens
    "cifar10": ("configs/mae/cifar10.py", MAE, 1),
    "simmim": ("configs/mae/simmim_cifar10.py", {"model.depth": "1"}, 1),
    "gpt2-scan": ("configs/gpt/gpt2_124m.py", LANGUAGE | {"model.scan": "True"}, 1),
    "gpt2": ("configs/gpt/gpt2_124m.py", LANGUAGE | {"model.scan": "False"}, 1),
    "bert": ("configs/bert/bert_base.py", LANGUAGE, 0),  # attention dropout, which no fused kernel has
    "roberta": ("configs/bert/roberta_base.py", LANGUAGE, 0),
    "crammed": ("configs/bert/crammed.py", LANGUAGE, 1),
    "modernbert": ("configs/bert/modernbert_base.py", {"model.depth": "2"}, 4),  # one block is local; remat computes both twice
    "clip-b16": ("configs/clip/vit_b16_cc3m.py", TOWERS, 0),  # half of 196 patches are dropped
    "clip-b16-whole": ("configs/clip/vit_b16_cc3m.py", TOWERS | {"task.mask": "None"}, 1),  # 197 tokens; 77 of a caption
    "clip-b32": ("configs/clip/vit_b32_laion400m.py", TOWERS, 0),
    "siglip": ("configs/siglip/b16.py", TOWERS, 3),  # 196 tokens, twice by remat, and one query of the pooling head
    "translation": ("configs/downstream/multi30k_en_de.py", {"model.encoder.depth": "1"}, 0),
    "squad": ("configs/downstream/squad.py", LANGUAGE, 0),
}
DEFAULT = ("mae-b", "gpt2", "siglip")
FORWARD = {"cuda": r"custom_call @__cudnn\$fmha\w*(?<!Backward)\(", "tpu": r'kernel_name = "splash_mha_fwd'}


@pytest.fixture(autouse=True)
def cudnn(monkeypatch):
    """The library is not here to be asked for its version."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: float(capability) <= 9.0)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: capability == "9.0")


@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("case", [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def test_the_loss_and_its_gradient_lower(case, platform):
    file, overrides, fused = CASES[case]
    overrides = {name: value for name, value in overrides.items()}
    config = configs.load(file, overrides | {"data.batch_size": "8"})
    cls = runs.task_class(config)
    dataset = stand_in.dataset(stand_in.info_of(cls.data, config, 50_304))
    task = cls.from_config(config, dataset.info)
    key = jax.eval_shape(lambda: jax.random.key(0))
    rows = {name: jax.ShapeDtypeStruct((8, *x.shape), x.dtype) for name, x in dataset.example(0, None).items()}
    batch = jax.eval_shape(lambda rows: dataset.on_device(rows, None), rows)
    batch |= {name: jax.ShapeDtypeStruct((8,), jnp.int32) for name in ("position", "index")}
    params = jax.eval_shape(task.init, key, batch)

    def loss(params, batch, key):
        batch = task.prepare(batch, key, train=True)
        return task.loss(params, batch, key, train=True, context=task.context(params))

    with target.told(TARGETS[platform]):
        traced = jax.jit(jax.value_and_grad(loss, has_aux=True)).trace(params, batch, key)
    (value, _), gradient = traced.out_info
    assert value.shape == () and jax.tree.map(lambda x: (x.shape, x.dtype), gradient) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert len(re.findall(FORWARD[platform], text)) == fused
    assert "inlineable" not in text
