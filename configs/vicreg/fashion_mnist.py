r"""VICReg on Fashion-MNIST, at the size of two CPU cores: Bardes et al. 2022 (arXiv:2105.04906).

    ssl-jax run --config=configs/vicreg/fashion_mnist.py --workdir=runs/vicreg

Not tuned and never run to its end: there is no expected result yet. Its 44 TFLOP of training take about 5 minutes at the
139 GFLOP/s of two cores of an AMD EPYC.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:fashion_mnist/train", test="bundled:fashion_mnist/test", batch_size=256, placement="device"
    )
    augment = dict(crop=dict(scale=(0.2, 1.0)), flip=True, jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
    config.data.views = dict(pair=dict(count=2, augment=augment))
    config.task = dict(name="joint_embedding", loss="vicreg", hidden=(512, 512), outputs=512)
    config.model = dict(name="vit", patch_size=7, width=96, depth=3, heads=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="10 epochs", dtype="float32")
    config.optimizer = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.95, weight_decay=0.05, warmup="10 %")
    config.downstream = {
        "linear_probe": dict(l2=(1e-3, 1e-4, 1e-5, 1e-6)),
        "linear_probe:blocks": dict(
            representation="block00/mean+block01/mean+mean", l2=(1e-4, 1e-5, 1e-6), baselines=("random_encoder",)
        ),
        "knn": dict(k=20),
    }
    return config
