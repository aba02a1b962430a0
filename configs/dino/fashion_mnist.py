r"""DINO on Fashion-MNIST, at the size of two CPU cores: Caron et al. 2021 (arXiv:2104.14294).

    ssl-jax run --config=configs/dino/fashion_mnist.py --workdir=runs/dino

Not tuned and never run to its end: there is no expected result yet. Its 85 TFLOP of training take about 10 minutes at the
139 GFLOP/s of two cores of an AMD EPYC.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:fashion_mnist/train", test="bundled:fashion_mnist/test", batch_size=128, placement="device"
    )
    jitter = dict(brightness=0.4, contrast=0.4, prob=0.8)
    config.data.views = dict(
        globals=dict(count=2, augment=dict(crop=dict(scale=(0.4, 1.0)), flip=True, jitter=jitter)),
        locals=dict(count=4, image_size=14, augment=dict(crop=dict(scale=(0.1, 0.4)), flip=True, jitter=jitter)),
    )
    config.task = dict(name="self_distillation", prototypes=1024, hidden=512, bottleneck=128)
    config.schedules = dict(
        ema=dict(start=0.99, end=1.0),
        teacher_temperature=dict(start=0.04, end=0.06, shape="linear", over="30 %"),
        weight_decay=dict(start=0.04, end=0.4),
        lr=((r"head/prototypes", dict(start=0.0, end=1.0, shape="step", over="1 epoch")),),
    )
    config.model = dict(name="vit", patch_size=7, width=96, depth=3, heads=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="10 epochs", dtype="float32")
    config.optimizer = dict(name="adamw", lr=5e-4, b1=0.9, b2=0.999, weight_decay=0.04, warmup="10 %", clip=3.0)
    config.downstream = {
        "linear_probe": dict(l2=(1e-3, 1e-4, 1e-5, 1e-6)),
        "linear_probe:blocks": dict(
            representation="block00/mean+block01/mean+mean", l2=(1e-4, 1e-5, 1e-6), baselines=("random_encoder",)
        ),
        "knn": dict(k=20),
    }
    return config
