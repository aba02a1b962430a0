r"""data2vec on CIFAR-10: ViT-Ti with patches of 4 x 4 pixels.

Baevski et al. 2022 (arXiv:2202.03555), section 5.1, at the size of CIFAR-10; the moving average's decay rises as for speech
and text.

    ssl-jax run --config=configs/data2vec/cifar10.py --workdir=runs/data2vec_cifar10

Not run here; we know of no published result at this size.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:cifar10/train", test="tfds:cifar10/test", batch_size=256, image_size=32)
    config.data.placement = "device"
    config.data.augment = dict(crop=dict(scale=(0.2, 1.0)), flip=True)
    config.task = dict(name="data2vec_image", mask=dict(ratio=0.6), targets=dict(top_blocks=6, beta=2.0))
    config.schedules = dict(ema=dict(start=0.999, end=0.9998, shape="linear", over="15 %"))
    config.model = dict(name="vit", size="Ti", patch_size=4, positions="sincos2d", class_token=False, init="trunc_normal")
    config.training = dict(duration="200 epochs", dtype="bfloat16")
    config.optimizer = dict(name="adamw", base_lr=5e-4, min_lr=1e-6, weight_decay=0.05, warmup="10 epochs", clip=3.0)
    config.downstream = dict(linear_probe=dict(), knn=dict(k=(20, 200)), few_shot=dict())
    return config
