"""Models are found by name, by what they read."""

import jax
import jax.numpy as jnp
import pytest

from ssl_jax import models
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

IMAGES = DataInfo({"image": jax.ShapeDtypeStruct((8, 8, 3), jnp.float32)})


def test_every_registered_model_is_there():
    """A wrong line of MODELS would only be found by the first run that names it."""
    for named in models.MODELS.values():
        for name in named:
            assert callable(models.look_up(named, name, "model.name"))


def test_the_first_name_is_the_default_and_settings_of_the_task_win():
    section = dict(patch_size=4, width=16, depth=1, heads=2, mask_token=False)
    model = models.build("images", dict(model=section, training=dict(dtype="bfloat16")), IMAGES, mask_token=True)
    assert (type(model).__name__, model.grid, model.config.mask_token, model.dtype) == ("ViT", (2, 2), True, jnp.bfloat16)


@pytest.mark.parametrize("reads, config, message", [
    ("images", dict(model=dict(name="vti")), "model.name='vti': unknown; did you mean vit?"),
    ("images", dict(model=dict(name="transformer")), "model.name='transformer': does not read images; use vit"),
    ("tokens", dict(model=dict(name="dual_encoder")), "model.name='dual_encoder': does not read tokens; use transformer"),
    ("parallel_text", dict(model=dict(name="vit")),
     "model.name='vit': does not read parallel_text; use encoder_decoder or transformer"),
    ("images", dict(model={}, training=dict(dtype="float8")),
     "training.dtype='float8': must be one of float32, bfloat16, float16"),
    ("images", dict(model=dict(name=3)), "model.name=3: unknown; valid keys are vit"),
])  # fmt: skip
def test_mistakes_are_named(reads, config, message):
    with pytest.raises(UserError) as error:
        models.build(reads, config, IMAGES)
    assert str(error.value) == message


def test_names_of_blocks():
    assert [models.block_name(i) for i in (0, 11, 100)] == ["block00", "block11", "block100"]
    assert [models.block_number(name) for name in ("block07", "block123", "blocks", "block00/mlp")] == [7, 123, None, None]
