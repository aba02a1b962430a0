r"""data2vec on Fashion-MNIST, at the size of two CPU cores: Baevski et al. 2022 (arXiv:2202.03555).

    ssl-jax run --config=configs/data2vec/fashion_mnist.py --workdir=runs/data2vec

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
    config.data.augment = dict(crop=dict(scale=(0.3, 1.0)), flip=True)
    config.task = dict(name="data2vec_image", targets=dict(top_blocks=2))
    config.schedules = dict(ema=dict(start=0.99, end=0.999, shape="linear", over="30 %"))
    config.model = dict(name="vit", patch_size=4, width=96, depth=3, heads=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="10 epochs", dtype="float32")
    config.optimizer = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.999, weight_decay=0.04, warmup="10 %")
    config.downstream = {
        "linear_probe": dict(l2=(1e-3, 1e-4, 1e-5, 1e-6)),
        "linear_probe:blocks": dict(
            representation="block00/mean+block01/mean+mean", l2=(1e-4, 1e-5, 1e-6), baselines=("random_encoder",)
        ),
        "knn": dict(k=20),
    }
    return config
