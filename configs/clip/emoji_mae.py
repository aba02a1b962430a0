r"""A masked autoencoder on emoji pictures, from which configs/clip/emoji_from_mae.py starts its image tower.

He et al. 2022 (arXiv:2111.06377) with the image tower of configs/clip/emoji_cpu.py; the test pictures are not used.

    ssl-jax run --config=configs/clip/emoji_mae.py --workdir=runs/emoji_mae

Two CPU cores: minutes. Not yet measured: no interval is expected.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:emoji/train", test="bundled:emoji/test", batch_size=256, image_size=48, eval_crop=1.0, placement="device"
    )
    config.data.augment = dict(crop=dict(scale=(0.6, 1.0)))
    config.task = dict(name="masked_image", mask=dict(kind="random", ratio=0.75), target="normalized_pixels")
    config.task.decoder = dict(width=64, depth=2, heads=4)
    config.model = dict(name="vit", patch_size=8, width=128, depth=4, heads=4, positions="learned", class_token=False)
    config.training = dict(duration="100 epochs", dtype="float32")
    config.optimizer = dict(name="adamw", lr=1.5e-3, b1=0.9, b2=0.95, weight_decay=0.05, warmup="10 %")
    config.downstream = dict(linear_probe=dict(l2=(1e-1, 1e-2, 1e-3)), knn=dict())
    return config
