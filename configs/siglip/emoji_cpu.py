r"""SigLIP on emoji: the pairwise sigmoid loss on the data, the towers and the schedule of configs/clip/emoji_cpu.py.

Zhai et al. 2023 (arXiv:2303.15343): each of the 256 x 256 pairs is a binary question; scale 10, bias -10 to begin with.

    ssl-jax run --config=configs/siglip/emoji_cpu.py --workdir=runs/siglip_emoji

Two CPU cores, as configs/clip/emoji_cpu.py. Not yet measured: no interval is expected.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="bundled:emoji/train", test="bundled:emoji/test", batch_size=256, image_size=48, context_length=16)
    config.data.tokenizer = dict(name="wordpiece", size=2000, min_frequency=1)
    config.data.augment = dict(affine=dict(rotate=10.0, zoom=(0.85, 1.1), shift=0.06))
    config.data.normalize = "dataset"
    config.task = dict(name="image_text", loss="sigmoid", max_scale=None, same_text="ignore")
    config.model = dict(name="dual_encoder", dim=128, image_projection=False, projection_bias=True)
    config.model.image = dict(
        patch_size=8,
        width=128,
        depth=4,
        heads=4,
        positions="learned",
        class_token=False,
        pooling="attention",
        activation="gelu_tanh",
    )
    config.model.text = dict(
        width=128, depth=2, heads=4, causal=False, pooling="mean", mask_padding=True, activation="gelu_tanh"
    )
    config.training = dict(duration="60 epochs", dtype="float32", log_every=20)
    config.optimizer = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, warmup="10 %", clip=1.0)
    config.downstream = dict(retrieval=dict(), zero_shot=dict(), knn=dict(), linear_probe=dict())
    return config
