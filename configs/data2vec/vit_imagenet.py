r"""data2vec on ImageNet-1K: ViT-B/16 or L/16, pre-trained and fine-tuned.

Baevski et al. 2022 (arXiv:2202.03555), sections 4.1 and 5.1, and beit/README.md of facebookresearch/data2vec_vision.

    ssl-jax run --config=configs/data2vec/vit_imagenet.py:variant=B --workdir=runs/data2vec_b

Published top-1 accuracy after fine-tuning (table 1): ViT-B 84.2 (800 epochs), ViT-L 86.6 (1,600 epochs, the second half with
decay 0.9999; the recipe here is that of the first 800).

Not run here. Differences: the targets are the FFN outputs of the top six blocks, normalised before averaging, as in the
paper; the published command averages the blocks' outputs and normalises afterwards. The moving average's decay is
constant, as in the paper; the published command raises it from 0.999 at first.
"""

from ml_collections import ConfigDict

# lr, warm-up in epochs, drop path, attention dropout, layer scale
PRETRAIN = dict(B=(2e-3, 10, 0.25, 0.05, 1e-4), L=(1e-3, 80, 0.2, 0.15, 1e-5))
FINETUNE = dict(B=(4e-3, 100, 0.2, 0.0), L=(5e-3, 50, 0.25, 0.05))  # lr, epochs, drop path, weight decay


def get_config(arg: str = "variant=B") -> ConfigDict:
    variant = arg.removeprefix("variant=")
    if variant not in PRETRAIN:
        raise ValueError(f"{arg!r} is none of variant={', '.join(PRETRAIN)}")
    lr, warmup, drop_path, attention_dropout, layer_scale = PRETRAIN[variant]
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:imagenet2012/train", test="tfds:imagenet2012/validation", image_size=224)
    config.data.update(batch_size=2048 if variant == "B" else 4096, normalize="imagenet")
    config.data.augment = dict(
        crop=dict(scale=(0.08, 1.0)), flip=True, jitter=dict(brightness=0.4, contrast=0.4, saturation=0.4)
    )
    config.task = dict(name="data2vec_image", mask=dict(ratio=120 / 196), targets=dict(top_blocks=6, beta=2.0))
    config.model = dict(name="vit", size=variant, positions="relative", layer_scale=layer_scale, init="trunc_normal")
    config.model.update(drop_path=drop_path, attention_dropout=attention_dropout)
    config.training = dict(duration="800 epochs", dtype="bfloat16", ema=0.9998)
    config.optimizer = dict(
        name="adamw", lr=lr, min_lr=1e-5, b1=0.9, b2=0.999, weight_decay=0.05, warmup=f"{warmup} epochs", clip=3.0
    )  # fmt: skip
    config.downstream = dict(finetune=finetune(variant))
    return config


def finetune(variant: str) -> dict:
    lr, epochs, drop_path, decay = FINETUNE[variant]
    return dict(
        task=dict(pooling="mean", mix=dict(mixup=0.8, cutmix=1.0, smoothing=0.1)),
        model=dict(drop_path=drop_path, attention_dropout=0.0),
        data=dict(augment=dict(crop=dict(scale=(0.08, 1.0)), flip=True, randaugment=dict(), erase=dict(prob=0.25))),
        training=dict(duration=f"{epochs} epochs"),
        optimizer=dict(
            name="adamw", lr=lr, min_lr=1e-6, layer_decay=0.65, b1=0.9, b2=0.999, weight_decay=decay, warmup="10 epochs"
        ),
        batch_size=1024,
        scratch=None,
    )
