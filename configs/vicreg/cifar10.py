r"""VICReg on CIFAR-10: ViT-Ti with patches of 4 x 4 pixels.

Bardes et al. 2022 (arXiv:2105.04906), and scripts/pretrain/cifar/vicreg.yaml of solo-learn, with AdamW instead of LARS.
`--config.task.loss=barlow_twins --config.task.last_norm=True` is Barlow Twins.

    ssl-jax run --config=configs/vicreg/cifar10.py --workdir=runs/vicreg_cifar10

Not run here. Published with another encoder, ResNet-18, 1,000 epochs, linear probe during training: VICReg 92.07, Barlow
Twins 92.10 (solo-learn).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:cifar10/train", test="tfds:cifar10/test", batch_size=256, image_size=32)
    config.data.placement = "device"
    augment = dict(
        crop=dict(scale=(0.2, 1.0)),
        flip=True,
        jitter=dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, prob=0.8),
        greyscale=0.2,
        solarize=0.1,
    )
    config.data.views = dict(pair=dict(count=2, augment=augment))
    config.task = dict(name="joint_embedding", loss="vicreg", hidden=(2048, 2048), outputs=2048)
    config.model = dict(name="vit", size="Ti", patch_size=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="200 epochs", dtype="bfloat16")
    config.optimizer = dict(name="adamw", base_lr=5e-4, b1=0.9, b2=0.95, weight_decay=0.05, warmup="10 epochs")
    config.downstream = dict(linear_probe=dict(), knn=dict(k=(20, 200)), few_shot=dict())
    return config
