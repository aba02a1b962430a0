"""The MAE decoder: parameter counts and order of the patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.models.mae import Decoder, DecoderSettings
from tests.keys import toy_key

TINY = DecoderSettings(width=16, depth=1, heads=2)


@pytest.mark.parametrize("encoder_width, patch", [(768, 16), (1024, 16), (1280, 14)])
def test_parameter_count_of_the_published_decoder(encoder_width, patch):
    """models_mae.py: decoder_embed, mask_token, 8 blocks of width 512, decoder_norm, decoder_pred; positions are fixed."""
    d, outputs, grid = 512, patch * patch * 3, 224 // patch
    block = (d * 3 * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d
    expected = (encoder_width * d + d) + d + 8 * block + 2 * d + (d * outputs + outputs)
    decoder = Decoder(DecoderSettings(), (grid, grid), outputs, prefix=1)
    tokens, visible = jnp.zeros((1, 1 + 49, encoder_width)), jnp.arange(49)[None]
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), tokens, visible=visible))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_the_order_of_the_visible_tokens_does_not_matter(positions):
    """Each token returns to its own place: shuffling tokens and indices together changes nothing."""
    decoder = Decoder(DecoderSettings(width=16, depth=1, heads=2, positions=positions), (2, 3), 5, prefix=1)
    tokens = jax.random.normal(jax.random.key(0), (2, 4, 8))
    visible = jnp.asarray([[5, 0, 2], [1, 2, 3]], jnp.int32)
    params = jax.jit(decoder.init)(toy_key(1), tokens, visible=visible)
    order = jnp.asarray([2, 0, 1])
    shuffled = jnp.concatenate([tokens[:, :1], tokens[:, 1:][:, order]], axis=1)
    expected = jax.jit(decoder.apply)(params, tokens, visible=visible)
    np.testing.assert_allclose(jax.jit(decoder.apply)(params, shuffled, visible=visible[:, order]), expected, atol=1e-6)
    assert expected.shape == (2, 6, 5)


def test_all_patches_visible_equals_no_mask_at_all():
    decoder = Decoder(TINY, (2, 2), 3, prefix=1)
    tokens = jax.random.normal(jax.random.key(0), (1, 5, 8))
    visible = jnp.arange(4)[None]
    params = jax.jit(decoder.init)(toy_key(1), tokens, visible=visible)
    np.testing.assert_allclose(
        jax.jit(decoder.apply)(params, tokens), jax.jit(decoder.apply)(params, tokens, visible=visible), atol=1e-6
    )


def test_depth_zero_is_one_linear_layer_on_the_patch_tokens():
    decoder = Decoder(DecoderSettings(depth=0), (2, 2), 3, prefix=1)
    tokens = jax.random.normal(jax.random.key(0), (1, 5, 8))
    params = jax.jit(decoder.init)(toy_key(1), tokens)
    assert set(params["params"]) == {"prediction"}
    expected = tokens[:, 1:] @ params["params"]["prediction"]["kernel"]
    np.testing.assert_allclose(jax.jit(decoder.apply)(params, tokens), expected, atol=1e-6)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="depth=-1: must be at least 0"):
        DecoderSettings(depth=-1)
    with pytest.raises(UserError, match="multiple of 4"):
        DecoderSettings(width=6, heads=2)
