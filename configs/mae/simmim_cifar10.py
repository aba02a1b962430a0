r"""SimMIM on CIFAR-10: mask tokens in the encoder, a linear decoder, the absolute error of raw pixels on hidden patches.

Xie et al. 2022 (arXiv:2111.09886), sections 3 and 4.1: squares of pixels are hidden (32 x 32 of a 192-pixel image there, at a ratio of
0.6), AdamW with a weight decay of 0.05. The model is that of configs/mae/cifar10.py; hidden squares have 4 pixels.

    ssl-jax run --config=configs/mae/simmim_cifar10.py --config.data.train=npz:cifar10_train.npz --config.data.test=npz:cifar10_test.npz --workdir=runs/simmim_cifar10
"""  # noqa: E501

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:cifar10/train", test="tfds:cifar10/test", batch_size=1024, image_size=32, normalize="half")
    config.data.augment = dict(crop=dict(scale=(0.67, 1.0)), flip=True)
    config.task = dict(name="masked_image", mask=dict(kind="random", ratio=0.6, unit=2), target="pixels", loss="l1")
    config.task.mask_tokens_in_encoder = True
    config.task.decoder = dict(depth=0)
    config.model = dict(name="vit", size="Ti", patch_size=2, positions="learned")
    config.training = dict(duration="400 epochs", dtype="bfloat16")
    config.optimizer = dict(
        name="adamw", base_lr=1e-4, b1=0.9, b2=0.999, weight_decay=0.05, clip=5.0, schedule="warmup_cosine", warmup="10 epochs"
    )  # fmt: skip
    config.downstream = dict(linear_probe=dict(), knn=dict(k=20))
    return config
