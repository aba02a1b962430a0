"""The vision transformer against the published definitions: patch order, positions, parameter counts, and what it may see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.errors import UserError
from ssl_jax.models.patches import inverse_of, patchify, pick, relative_index, sincos2d, unpatchify
from ssl_jax.models.vit import SIZES, ViT, ViTSettings, build
from ssl_jax.task import DataInfo
from tests.keys import toy_key


def tiny(**options) -> ViTSettings:
    return ViTSettings(**{"width": 16, "depth": 2, "heads": 2, "patch_size": 2} | options)


def init(model: ViT, batch: int = 2, **options):
    images = jax.random.normal(jax.random.key(1), (batch, *model.image_size, model.channels))
    return jax.jit(model.init)(toy_key(0), images, **options)["params"], images


def images_of(*shape: int) -> DataInfo:
    return DataInfo({"image": jax.ShapeDtypeStruct(shape, jnp.float32)})


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


shapes = st.tuples(*[st.integers(1, 3)] * 5)


@given(shapes)
@settings(max_examples=12, deadline=None)
def test_patches_come_row_by_row_with_pixels_in_the_order_row_column_channel(shape):
    rows, columns, p, q, channels = shape
    images = np.random.default_rng(0).normal(size=(2, rows * p, columns * q, channels)).astype(np.float32)
    patches = np.asarray(jax.jit(lambda images: patchify(images, (p, q)))(images))
    for r in range(rows):
        for c in range(columns):
            cut = images[:, r * p : (r + 1) * p, c * q : (c + 1) * q]
            np.testing.assert_array_equal(patches[:, r * columns + c], cut.reshape(2, -1))
    np.testing.assert_array_equal(jax.jit(lambda patches: unpatchify(patches, (p, q), (rows, columns)))(patches), images)


@pytest.mark.parametrize("grid", [(3, 3), (2, 5), (14, 14)])
def test_sine_cosine_positions_encode_the_column_first(grid):
    """The MAE reference's util/pos_embed.py, written out entry by entry."""
    width = 24
    expected = np.zeros((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(6):
                angle = 10000 ** (-i / 6)
                entry = expected[row * grid[1] + column]
                entry[i], entry[6 + i] = np.sin(column * angle), np.cos(column * angle)
                entry[12 + i], entry[18 + i] = np.sin(row * angle), np.cos(row * angle)
    np.testing.assert_allclose(sincos2d(width, grid), expected, atol=1e-6)


def torch_vit_parameters(width: int, depth: int, mlp: int, patch: int, channels: int = 3) -> int:
    """Without positions: convolution, class token, blocks (qkv, projection, MLP, two norms), final norm."""
    block = (width * 3 * width + 3 * width) + (width * width + width) + (2 * width * mlp + mlp + width) + 4 * width
    return (patch * patch * channels * width + width) + width + depth * block + 2 * width


# millions of parameters of the encoder with its positions: B, L, H from Dosovitskiy et al. 2021, table 1; Ti and S from
# Touvron et al. 2021, table 1, g from Zhai et al. 2022, table 2 (these three with their classifiers, which round away)
PUBLISHED = {"Ti": 5.5, "S": 21.7, "B": 86, "L": 303, "H": 631, "g": 1011}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_of_the_published_sizes(size):
    model = build({"size": size}, images_of(224, 224, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3))))["params"]
    c = model.config
    assert count(shapes) == torch_vit_parameters(c.width, c.depth, c.width_of_mlp, c.patch[0])
    with_positions = count(shapes) + (model.patches + 1) * c.width
    assert with_positions / 1e6 == pytest.approx(PUBLISHED[size], rel=0.01)


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), p=st.integers(1, 3), q=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=3, deadline=None)
def test_hidden_patches_never_reach_the_encoder(rows, columns, p, q, seed):
    """Changing the pixels of hidden patches changes no output of the encoder, and their gradient is zero."""
    model = ViT(tiny(depth=1, patch_size=(p, q)), (rows * p, columns * q), 1)
    params, images = init(model)
    rng = np.random.default_rng(seed)
    keep = rng.integers(1, rows * columns + 1)
    visible = jnp.asarray(np.stack([rng.permutation(rows * columns)[:keep] for _ in range(2)]), jnp.int32)
    hidden = inverse_of(visible, rows * columns) < 0
    noise = jnp.where(hidden[..., None], 100.0, 0.0) * jnp.ones((1, 1, p * q))
    changed = images + unpatchify(noise, (p, q), (rows, columns))
    encode = jax.jit(lambda x: model.apply({"params": params}, x, visible=visible)[0])
    np.testing.assert_array_equal(encode(images), encode(changed))
    gradient = patchify(jax.jit(jax.grad(lambda x: jnp.sum(encode(x) ** 2)))(images), (p, q))
    assert not np.any(np.asarray(gradient)[np.asarray(hidden)])


@pytest.mark.parametrize("positions", ["sincos2d", "learned", "none"])
def test_encoding_all_patches_in_another_order_permutes_the_tokens(positions):
    """Positions belong to the patches, not to the places in the shuffled sequence."""
    model = ViT(tiny(positions=positions), (6, 4), 3)
    params, images = init(model)
    order = jnp.asarray(np.stack([np.random.default_rng(i).permutation(6) for i in range(2)]), jnp.int32)
    whole = jax.jit(model.apply)({"params": params}, images)[0]
    shuffled = jax.jit(model.apply)({"params": params}, images, visible=order)[0]
    np.testing.assert_allclose(shuffled[:, 1:], jnp.take_along_axis(whole[:, 1:], order[..., None], 1), atol=2e-5)
    np.testing.assert_allclose(shuffled[:, 0], whole[:, 0], atol=2e-5)


def test_pick_is_a_gather_and_its_gradient_the_scatter():
    x = jax.random.normal(jax.random.key(0), (3, 7, 5))
    indices = jnp.asarray(np.stack([np.random.default_rng(i).permutation(7)[:4] for i in range(3)]), jnp.int32)
    weights = jax.random.normal(jax.random.key(1), (3, 4, 5))
    ours = lambda x: jnp.sum(weights * pick(x, indices, inverse_of(indices, 7)))
    plain = lambda x: jnp.sum(weights * jnp.take_along_axis(x, indices[..., None], 1))
    np.testing.assert_array_equal(ours(x), plain(x))
    np.testing.assert_array_equal(jax.grad(ours)(x), jax.grad(plain)(x))


def test_a_mask_token_hides_the_pixels_but_not_the_position():
    model = ViT(tiny(mask_token=True), (4, 4), 1)
    params, images = init(model)
    mask = jnp.asarray([[True, False, False, True]] * 2)
    encode = jax.jit(lambda x: model.apply({"params": params}, x, mask=mask)[0])
    np.testing.assert_array_equal(encode(images), encode(images.at[:, :2, :2].set(9.0)))
    assert np.abs(encode(images) - encode(images.at[:, :2, 2:].set(9.0))).max() > 1e-3
    assert np.abs(encode(images)[:, 1] - encode(images)[:, 4]).max() > 1e-3


@pytest.mark.parametrize("options", [
    dict(class_token=False), dict(registers=3, positions="learned"), dict(pooling="cls", pooler=True),
    dict(pooling="attention"), dict(norm_pooled=True), dict(layer_scale=1e-5, gated=True, mlp_width=24),
    dict(pre_norm=True, patch_bias=False, norm_eps=1e-5, activation="quick_gelu"), dict(scan=True, remat="full"),
    dict(patch_size=(2, 3)),
])  # fmt: skip
def test_every_variant_names_its_representations(options):
    model = ViT(tiny(**options), (4, 6), 2)
    params, images = init(model)
    tokens, intermediates = jax.jit(model.apply)({"params": params}, images)
    named = model.representations(tokens, intermediates)
    assert tokens.shape == (2, model.config.prefix + model.patches, 16)
    assert named["tokens"].shape == (2, model.patches, 16)
    np.testing.assert_allclose(named["mean"], np.mean(named["tokens"], axis=1), atol=1e-6)
    expected = {"pooled", "tokens", "mean", "block00/mean", "block01/mean"}
    expected |= {"cls", "block00/cls", "block01/cls"} if model.config.class_token else set()
    assert set(named) == expected
    assert all(np.all(np.isfinite(v)) for v in named.values())


def test_initial_values_are_maes():
    """Xavier-uniform everywhere (query, key and value as one matrix), tokens N(0, 0.02), norms 1 and 0, biases 0."""
    model = ViT(ViTSettings(width=192, depth=1, heads=3, patch_size=8), (32, 32), 3)
    params, _ = init(model)
    kernels = {
        "patch_embedding": (params["patch_embedding"], 8 * 8 * 3, 192),
        "query": (params["stack"]["block00"]["attention"]["query"], 192, 3 * 192),
        "out": (params["stack"]["block00"]["attention"]["out"], 192, 192),
        "up": (params["stack"]["block00"]["mlp"]["up"], 192, 768),
    }
    for name, (layer, fan_in, fan_out) in kernels.items():
        bound, kernel = np.sqrt(6 / (fan_in + fan_out)), np.asarray(layer["kernel"])
        assert 0.998 * bound < np.abs(kernel).max() <= bound, name
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.02), name
        assert not np.any(layer["bias"])
    assert np.std(params["class_token"]) == pytest.approx(0.02, rel=0.2)
    np.testing.assert_array_equal(params["final_norm"]["scale"], 1)


def test_resizing_positions_keeps_the_class_token_and_a_linear_ramp():
    model = ViT(tiny(positions="learned"), (16, 16), 1)
    ramp = np.arange(4, dtype=np.float32)
    table = np.concatenate([np.full((1, 16), 7.0), np.tile(np.repeat(ramp, 4)[:, None], (1, 16))]).astype(np.float32)
    resized = model.adapt({"positions": table}, (4, 4))["positions"]
    assert resized.shape == (65, 16)
    np.testing.assert_array_equal(resized[0], 7)
    rows = np.asarray(resized[1:]).reshape(8, 8, 16)
    # of the ramp 0 1 2 3 at 1.25 and 1.75, by hand from the cubic kernel with a = -0.75
    np.testing.assert_allclose(rows[3:5, 0, 0], [1.296875, 1.703125], atol=1e-6)
    assert np.ptp(rows, axis=1).max() < 1e-5


@pytest.mark.parametrize("section, message", [
    (dict(patch_size=6), "model.patch_size=6 does not divide the image, 28 x 28; use 1, 2, 4, 7, 14 or 28"),
    (dict(size="X"), "model.size='X': must be one of Ti, S, B, L, H, g"),
    (dict(size="B", widht=3), "unknown key model.widht; did you mean model.width?"),
    (dict(patch_size=7, positions="sine"), "model.positions='sine': must be one of sincos2d, learned, relative, none"),
    (dict(patch_size=7, class_token=False, pooling="cls"), 'model.pooling="cls": needs class_token=True'),
    (dict(patch_size=0), "model.patch_size=0: must be a number of pixels or a pair (height, width)"),
])  # fmt: skip
def test_mistakes_are_named(section, message):
    with pytest.raises(UserError) as error:
        build(section, images_of(28, 28, 1))
    assert str(error.value) == message


def test_settings_win_over_the_size():
    config = ViTSettings.read(dict(size="S", depth=3, patch_size=8))
    assert (config.width, config.depth, config.heads, config.patch, config.width_of_mlp) == (384, 3, 6, (8, 8), 1536)


@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_a_smaller_image_gets_positions_interpolated_over_the_whole_grid(positions):
    """torch's bicubic interpolation of the native grid's table, as a model of that size would hold it; the class token keeps
    its own."""
    torch = pytest.importorskip("torch")
    model = ViT(tiny(positions=positions, depth=1), (12, 16), 3)
    params, images = init(model)
    table = params["positions"][1:] if positions == "learned" else sincos2d(16, (6, 8))
    image = torch.tensor(np.asarray(table)).reshape(1, 6, 8, 16).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size=(3, 5), mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(15, 16).numpy()
    first = params["positions"][:1] if positions == "learned" else np.zeros((1, 16))
    small = ViT(tiny(positions="learned", depth=1), (6, 10), 3)
    images = images[:, :6, :10]
    expected = jax.jit(small.apply)({"params": {**params, "positions": np.concatenate([first, expected])}}, images)[0]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, images)[0], expected, atol=5e-6)


@pytest.mark.parametrize("positions", ["sincos2d", "learned"])
def test_visible_patches_of_a_small_image_keep_their_positions(positions):
    model = ViT(tiny(positions=positions), (12, 16), 3)
    params, images = init(model)
    small, order = images[:, :6, :4], jnp.asarray([[5, 0, 3, 2, 1, 4]] * 2, jnp.int32)
    whole = jax.jit(model.apply)({"params": params}, small)[0]
    shuffled = jax.jit(model.apply)({"params": params}, small, visible=order)[0]
    np.testing.assert_allclose(shuffled[:, 1:], jnp.take_along_axis(whole[:, 1:], order[..., None], 1), atol=2e-5)


def test_learned_positions_learn_from_images_of_every_size():
    """The gradient of a small image's tokens reaches every row of the table."""
    model = ViT(tiny(positions="learned", depth=1), (8, 8), 1)
    params, images = init(model)
    total = lambda p: jnp.sum(jnp.sin(model.apply({"params": p}, images[:, :6, :4])[0]))
    assert np.all(np.any(jax.jit(jax.grad(total))(params)["positions"], axis=1))


def test_an_image_that_patches_do_not_divide_is_refused():
    model = ViT(tiny(patch_size=4), (8, 8), 1)
    params, _ = init(model)
    with pytest.raises(UserError, match="an image of 6 x 8: patches of 4 x 4 do not divide it; use multiples of these"):
        model.apply({"params": params}, jnp.zeros((1, 6, 8, 1)))


@pytest.mark.parametrize("pooling", ["mean", "attention", "cls"])
def test_padding_patches_change_nothing(pooling):
    """With segments, ragged contexts in one array: what stands in padding (segment 0) reaches no real token and no pooling."""
    model = ViT(tiny(pooling=pooling, registers=1), (6, 4), 3)
    params, images = init(model)
    visible = jnp.asarray([[0, 3, 5, 1], [4, 2, 1, 0]], jnp.int32)
    encode = jax.jit(lambda visible, segments: model.apply({"params": params}, images, visible=visible, segments=segments))
    few, inner = jax.jit(lambda v: model.apply({"params": params}, images, visible=v))(visible[:, :3])
    padded, padded_inner = encode(visible, jnp.asarray([[1, 1, 1, 0]] * 2))
    np.testing.assert_allclose(padded[:, :5], few, atol=2e-6)
    np.testing.assert_allclose(padded_inner["pooled"], inner["pooled"], atol=2e-6)


def test_segments_keep_two_sets_of_patches_apart():
    model = ViT(tiny(class_token=False), (6, 4), 3)
    params, images = init(model)
    segments = jnp.asarray([[1, 2, 1, 2, 2, 1]] * 2)
    encode = jax.jit(lambda x: model.apply({"params": params}, x, segments=segments)[0])
    changed = np.any(np.asarray(encode(images) != encode(images.at[:, :2, :2].add(1.0))), axis=(0, 2))
    assert list(changed) == [True, False, True, False, False, True]


def test_relative_positions_depend_on_offsets_alone():
    """Pairs of patches share a row of the table where they share an offset; the class token has three of its own."""
    index = relative_index((3, 4))
    offsets = {}
    for a, b in itertools.product(range(12), repeat=2):
        offset = tuple(np.subtract(divmod(a, 4), divmod(b, 4)))
        assert offsets.setdefault(offset, index[1 + a, 1 + b]) == index[1 + a, 1 + b]
    assert sorted(offsets.values()) == list(range(5 * 7))
    assert set(index[0, 1:]) == {35} and set(index[1:, 0]) == {36} and index[0, 0] == 37


def test_relative_positions_take_whole_images_of_one_size():
    model = ViT(tiny(positions="relative"), (8, 8), 1)
    images = jnp.zeros((2, 8, 8, 1))
    params = jax.jit(model.init)(toy_key(0), images)["params"]
    moved = {**params, "relative_positions": jax.random.normal(jax.random.key(1), params["relative_positions"].shape)}
    apply = jax.jit(lambda p: model.apply({"params": p}, jnp.ones_like(images))[0])
    assert np.abs(apply(moved) - apply(params)).max() > 1e-3
    for wrong, options in ((jnp.zeros((2, 12, 8, 1)), {}), (images, dict(visible=jnp.zeros((2, 1), jnp.int32)))):
        with pytest.raises(UserError, match="relative.*whole images of one size"):
            model.apply({"params": params}, wrong, **options)
    with pytest.raises(UserError, match="class_token=True and registers=0"):
        tiny(positions="relative", registers=1)
    assert model.adapt(params, model.grid).keys() == params.keys()
    with pytest.raises(UserError, match=r"relative positions of 4 x 4 patches do not fit 8 x 4 and cannot be interpolated"):
        model.for_size((16, 8)).adapt(params, model.grid)
