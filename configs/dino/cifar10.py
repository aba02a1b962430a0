r"""DINO on CIFAR-10: ViT-Ti with patches of 4 x 4 pixels.

Caron et al. 2021 (arXiv:2104.14294); 4,096 prototypes and decay 0.9995 from scripts/pretrain/cifar/dino.yaml of solo-learn.

    ssl-jax run --config=configs/dino/cifar10.py --workdir=runs/dino_cifar10

Not run here. Published with another encoder, ResNet-18: kNN 84.0 after 200 epochs (lightly, the best epoch on the test
split); linear probe during training 89.52 after 1,000 epochs (solo-learn).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:cifar10/train", test="tfds:cifar10/test", batch_size=256, image_size=32)
    config.data.placement = "device"
    colours = dict(flip=True, jitter=dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8), greyscale=0.2)
    config.data.views = dict(
        globals=dict(count=2, augment=dict(crop=dict(scale=(0.4, 1.0)), **colours)),
        locals=dict(count=4, image_size=16, augment=dict(crop=dict(scale=(0.1, 0.4)), **colours)),
    )
    config.task = dict(name="self_distillation", prototypes=4096, hidden=2048, bottleneck=256)
    config.schedules = dict(
        ema=dict(start=0.9995, end=1.0),
        teacher_temperature=dict(start=0.04, end=0.07, shape="linear", over="30 epochs"),
        weight_decay=dict(start=0.04, end=0.4),
        lr=((r"head/prototypes", dict(start=0.0, end=1.0, shape="step", over="1 epochs")),),
    )
    config.model = dict(name="vit", size="Ti", patch_size=4, positions="sincos2d", pooling="cls", init="trunc_normal")
    config.training = dict(duration="200 epochs", dtype="bfloat16")
    config.optimizer = dict(name="adamw", base_lr=5e-4, min_lr=1e-6, weight_decay=0.04, warmup="10 epochs", clip=3.0)
    config.downstream = dict(
        linear_probe=dict(representation="cls"),
        knn=dict(representation="cls", k=(20, 200)),
        few_shot=dict(representation="cls"),
    )
    return config
