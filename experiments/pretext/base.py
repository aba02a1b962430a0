r"""The base config of the comparison of pretext tasks: a small ViT on Fashion-MNIST, and the evaluators of every arm.

    ssl-jax run --config=experiments/pretext/base.py --workdir=runs/base

Linear probe, kNN and few-shot classification use the concatenated means of all three blocks; a second kNN uses the concatenated
tokens of the last block, just as kNN on raw pixels uses all pixels. Fine-tuning on 600 labels trains the whole encoder.
"""

from ml_collections import ConfigDict

BLOCKS = "block00/mean+block01/mean+mean"


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.data = dict(
        train="bundled:fashion_mnist/train", test="bundled:fashion_mnist/test", batch_size=128, placement="device"
    )
    config.data.augment = dict(crop=dict(scale=(0.5, 1.0)))
    config.task = dict(name="masked_image", mask=dict(kind="random", ratio=0.75), target="pixels")
    config.task.decoder = dict(width=64, depth=1, heads=4)
    config.model = dict(name="vit", patch_size=7, width=96, depth=3, heads=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="1000 steps", dtype="float32", tensorboard=False)
    config.optimizer = dict(
        name="muon", lr=2e-3, matrix_lr=0.02, b1=0.9, b2=0.95, momentum=0.95, weight_decay=0.05, warmup="10 %"
    )  # fmt: skip
    config.checkpoint = dict(keep=1)
    config.downstream = {
        "linear_probe": dict(representation=BLOCKS, l2=(1e-4, 1e-5), baselines=False),
        "knn": dict(representation=BLOCKS, k=20, baselines=False),
        "knn:tokens": dict(representation="tokens", k=20, baselines=False),
        "few_shot": dict(representation=BLOCKS, shots=(10,), baselines=False),
        "label_efficiency": dict(fractions=(0.01,), seeds=1, durations=("50 epochs",), scratch=None, linear_probe=None),
    }
    return config
