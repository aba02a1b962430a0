r"""The base config of the experiments in this folder: MAE on Fashion-MNIST, small enough for many runs on two CPU cores.

He et al. 2022 (arXiv:2111.06377), table 8, at the size of configs/mae/fashion_mnist.py with two thirds of its width. Every run
is evaluated as in the paper by a linear probe and fine-tuning; the latter uses 600 labels, since differences would vanish with
all 60,000. All runs fine-tune on the same 600 images.

    ssl-jax run --config=experiments/mae/base.py --workdir=runs/base
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        train="bundled:fashion_mnist/train", test="bundled:fashion_mnist/test", batch_size=64, placement="device"
    )
    config.data.augment = dict(crop=dict(padding=2), flip=True)
    config.task = dict(name="masked_image", mask=dict(kind="random", ratio=0.75), target="pixels")
    config.task.decoder = dict(width=64, depth=1, heads=4)
    config.model = dict(name="vit", patch_size=7, width=128, depth=3, heads=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="4 epochs", dtype="float32", tensorboard=False)
    config.optimizer = dict(
        name="adamw", lr=1.5e-3, b1=0.9, b2=0.95, weight_decay=0.05, schedule="warmup_cosine", warmup="10 %"
    )
    config.checkpoint = dict(keep=1)
    config.downstream = dict(linear_probe=dict(l2=(1e-4, 1e-5, 1e-6), baselines=False))
    config.downstream.label_efficiency = dict(
        fractions=(0.01,), seeds=1, durations=("50 epochs",), scratch=None, linear_probe=None
    )
    return config
