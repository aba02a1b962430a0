r"""I-JEPA on ImageNet-1K: ViT-B/16, L/16 or H/14 as published.

Assran et al. 2023 (arXiv:2301.08243), appendix A.1, and configs/in1k_vith14_ep300.yaml of facebookresearch/ijepa.

    ssl-jax run --config=configs/ijepa/vit_imagenet.py:variant=H --workdir=runs/ijepa_h

Published top-1 accuracy (tables 1 and 2), the teacher's mean representation:
               epochs   linear probe   1 % of the labels
    ViT-B/16   600      72.9
    ViT-L/16   600      77.5           69.4
    ViT-H/14   300      79.3           73.3

Not run here. Differences: blocks reach the last row and column of the grid, scale and aspect ratio are drawn independently,
and contexts are truncated at random instead of in raster order (pretext/block_masking.py). The code of the published linear
probe was never released; the one here is DINOv2's grid of heads.
"""

from ml_collections import ConfigDict

EPOCHS = dict(B=600, L=600, H=300)
PREDICTOR = dict(B=(6, 12), L=(12, 16), H=(12, 16))  # depth, heads


def get_config(arg: str = "variant=H") -> ConfigDict:
    variant = arg.removeprefix("variant=")
    if variant not in EPOCHS:
        raise ValueError(f"{arg!r} is none of variant={', '.join(EPOCHS)}")
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:imagenet2012/train", test="tfds:imagenet2012/validation", batch_size=2048, image_size=224)
    config.data.update(normalize="imagenet", augment=dict(crop=dict(scale=(0.3, 1.0))))
    depth, heads = PREDICTOR[variant]
    config.task = dict(name="ijepa", predictor=dict(width=384, depth=depth, heads=heads))
    config.schedules = dict(ema=dict(start=0.996, end=1.0, shape="linear"), weight_decay=dict(start=0.04, end=0.4))
    config.model = dict(name="vit", size=variant, positions="sincos2d", class_token=False, init="trunc_normal")
    config.training = dict(duration=f"{EPOCHS[variant]} epochs", dtype="bfloat16")
    config.optimizer = dict(
        name="adamw", lr=1e-3, min_lr=1e-6, b1=0.9, b2=0.999, weight_decay=0.04, warmup="40 epochs", warmup_start=0.2
    )  # fmt: skip
    config.downstream = dict(linear_probe=dict(protocol="grid"), knn=dict(k=20))
    return config
