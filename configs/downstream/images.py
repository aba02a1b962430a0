r"""Fine-tuning an image classifier on one's own class folders, from a run or from published weights.

    ssl-jax run --config=configs/mae/folder.py --config.data.train=folder:DIR --workdir=runs/mae
    ssl-jax finetune --config=configs/downstream/images.py --config.data.train=folder:DIR --init=runs/mae --workdir=runs/classes
    ssl-jax predict --workdir=runs/classes --data=folder:NEW --to=classes.csv

He et al. 2022 (arXiv:2111.06377), table 9, at a batch of 64. `model` is that of configs/mae/folder.py; for other weights, the
error message says which settings to add. Without --init it trains from scratch, for which 50 epochs are few. Not measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="folder:images", holdout=0.2, batch_size=64, image_size=224, normalize="imagenet", channels=3)
    config.data.augment = dict(crop=dict(scale=(0.08, 1.0)), flip=True)
    config.task = dict(name="classification", mix=dict(mixup=0.8, cutmix=1.0, smoothing=0.1))
    config.model = dict(name="vit", size="S", patch_size=16, drop_path=0.1)
    config.training = dict(duration="50 epochs", dtype="bfloat16")
    config.optimizer = dict(
        name="adamw", base_lr=1e-3, layer_decay=0.75, b1=0.9, b2=0.999, weight_decay=0.05, schedule="warmup_cosine",
        warmup="10 %",
    )  # fmt: skip
    config.downstream = dict(classification=dict())
    return config
