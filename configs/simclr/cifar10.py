r"""SimCLR on CIFAR-10: ViT-Ti with patches of 4 x 4 pixels.

Chen et al. 2020 (arXiv:2002.05709), appendix B.9, and scripts/pretrain/cifar/simclr.yaml of solo-learn, with AdamW instead
of LARS.

    ssl-jax run --config=configs/simclr/cifar10.py --workdir=runs/simclr_cifar10

Not run here. Published with other encoders (kNN, linear probe): ResNet-18, 200 epochs 84.7, - (lightly, the best epoch on the
test split); ResNet-18, 1,000 epochs -, 90.74 (solo-learn, during training); ViT 128 x 6, patch 4, pre-trained on STL-10 for
100 epochs 74.2, 72.9 (HugoPlanchat/self-supervised-to-jepa).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:cifar10/train", test="tfds:cifar10/test", batch_size=512, image_size=32)
    config.data.placement = "device"
    augment = dict(
        crop=dict(scale=(0.08, 1.0)),
        flip=True,
        jitter=dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, prob=0.8),
        greyscale=0.2,
    )
    config.data.views = dict(pair=dict(count=2, augment=augment))
    config.task = dict(name="joint_embedding", loss="nt_xent", temperature=0.2, hidden=(2048,), outputs=256)
    config.model = dict(name="vit", size="Ti", patch_size=4, positions="sincos2d", class_token=False)
    config.training = dict(duration="200 epochs", dtype="bfloat16")
    config.optimizer = dict(name="adamw", base_lr=5e-4, b1=0.9, b2=0.95, weight_decay=0.05, warmup="10 epochs")
    config.downstream = dict(linear_probe=dict(), knn=dict(k=(20, 200)), few_shot=dict())
    return config
