r"""I-JEPA on CIFAR-10: ViT-Ti with patches of 4 x 4 pixels, a grid of 8 x 8.

Assran et al. 2023 (arXiv:2301.08243), appendix A.1; the smallest context scales with the grid (pretext/block_masking.py).

    ssl-jax run --config=configs/ijepa/cifar10.py --workdir=runs/ijepa_cifar10

Not run here. Published with the same encoder, 30 epochs: kNN 41.1, a random encoder 29.6 (simillusion/ijepa-vit-tiny-cifar10).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:cifar10/train", test="tfds:cifar10/test", batch_size=256, image_size=32)
    config.data.placement = "device"
    config.data.augment = dict(crop=dict(scale=(0.3, 1.0)))
    config.task = dict(name="ijepa", predictor=dict(width=96, depth=6, heads=4))
    config.schedules = dict(ema=dict(start=0.996, end=1.0, shape="linear"), weight_decay=dict(start=0.04, end=0.4))
    config.model = dict(name="vit", size="Ti", patch_size=4, positions="sincos2d", class_token=False, init="trunc_normal")
    config.training = dict(duration="200 epochs", dtype="bfloat16")
    config.optimizer = dict(name="adamw", base_lr=5e-4, min_lr=1e-6, weight_decay=0.04, warmup="15 epochs", warmup_start=0.2)
    config.downstream = dict(linear_probe=dict(), knn=dict(k=(20, 200)), few_shot=dict())
    return config
