r"""MAE on one's own images: a directory of JPEG, PNG or WebP files of any size, with or without class folders.

He et al. 2022 (arXiv:2111.06377), table 8, with a ViT-S/16 for small collections and normalised pixels as the target.

    ssl-jax run --config=configs/mae/folder.py --config.data.train=folder:DIR --workdir=runs/mine

Without class folders, the evaluators that need labels are skipped. For more images, set `--config.model.size=B` and a longer
`--config.training.duration`; for small ones, `--config.data.image_size=64 --config.model.patch_size=8`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="folder:images", holdout=0.1, batch_size=256, image_size=224, normalize="imagenet", channels=3)
    config.data.augment = dict(crop=dict(scale=(0.2, 1.0)), flip=True)
    config.task = dict(name="masked_image", mask=dict(kind="random", ratio=0.75), target="normalized_pixels")
    config.task.decoder = dict(width=256, depth=4, heads=8)
    config.model = dict(name="vit", size="S", patch_size=16)
    config.training = dict(duration="400 epochs", dtype="bfloat16")
    config.optimizer = dict(
        name="adamw", base_lr=1.5e-4, b1=0.9, b2=0.95, weight_decay=0.05, schedule="warmup_cosine", warmup="5 %"
    )  # fmt: skip
    config.downstream = dict(linear_probe=dict(), knn=dict(k=20))
    return config
