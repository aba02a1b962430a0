r"""MAE on ImageNet-1K: ViT-B, L or H, pre-trained, fine-tuned and linearly probed as published.

He et al. 2022 (arXiv:2111.06377), tables 8 (pre-training), 9 (fine-tuning) and 10 (linear probe), and PRETRAIN.md and
FINETUNE.md of facebookresearch/mae where the repository differs.

    ssl-jax run --config=configs/mae/vit_imagenet.py:variant=L --workdir=runs/mae_l
    ssl-jax run --config=configs/mae/vit_imagenet.py:variant=B,recipe=repository,epochs=1600 --workdir=runs/mae_b

Published top-1 accuracy at 1,600 epochs:
               fine-tuned (paper)   linear probe (paper, repository)
    ViT-B      83.6                 68.0, 67.8
    ViT-L      85.9                 75.8, 76.0
    ViT-H      86.9                 76.6, 77.2

recipe=paper: fine-tuning with base lr 1e-3, layer decay 0.75, drop path 0.1 (H 0.2), the class token.
recipe=repository: ViT-B base lr 5e-4, layer decay 0.65; drop path 0.1, 0.2, 0.3; min_lr 1e-6; random erasing; mean pooling.

A run pre-trains, probes linearly (table 10, on augmented images), fine-tunes (table 9) and trains the same model from scratch
(table 11; published 82.3, 82.6, 83.1). To run only one of the last two, from a checkpoint or from random parameters:

    ssl-jax finetune --config=configs/mae/vit_imagenet.py:stage=finetune,variant=B --init=runs/mae_b --workdir=runs/mae_b_ft
    ssl-jax run --config=configs/mae/vit_imagenet.py:stage=scratch,variant=B --workdir=runs/scratch_b

Random-resized crops are torchvision's; the original linear probe draws them without repeated attempts.
"""

from ml_collections import ConfigDict

CHOICES = dict(
    stage=("pretrain", "finetune", "scratch"),
    variant=("B", "L", "H"),
    recipe=("paper", "repository"),
    target=("pixels", "normalized_pixels", "pca"),
)
EPOCHS = dict(B=100, L=50, H=50)
DROP_PATH = dict(paper=dict(B=0.1, L=0.1, H=0.2), repository=dict(B=0.1, L=0.2, H=0.3))
# Not on norms, biases, positions and the class token (main_finetune.py, no_weight_decay).
DECAY = ((r".*(bias|scale|positions|class_token)", 0.0), (".*", 1.0))

AUGMENT = dict(crop=dict(scale=(0.08, 1.0)), flip=True, randaugment=dict(layers=2, magnitude=9.0, std=0.5))
MIX = dict(mixup=0.8, cutmix=1.0, smoothing=0.1)


def get_config(arg: str = "") -> ConfigDict:
    choice = dict(stage="pretrain", variant="L", recipe="paper", target="normalized_pixels", epochs="800")
    for part in filter(None, arg.split(",")):
        key, _, value = part.partition("=")
        if key not in choice or value not in CHOICES.get(key, (value,)):
            allowed = " | ".join(f"{k}={','.join(v)}" for k, v in CHOICES.items())
            raise ValueError(f"{part!r} is none of {allowed} | epochs=NUMBER")
        choice[key] = value
    variant, recipe = choice["variant"], choice["recipe"]

    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tfds:imagenet2012/train", test="tfds:imagenet2012/validation", batch_size=4096, image_size=224)
    config.data.update(normalize="imagenet", augment=dict(crop=dict(scale=(0.2, 1.0)), flip=True))
    config.task = dict(name="masked_image", mask=dict(kind="random", ratio=0.75), target=choice["target"])
    config.task.decoder = dict(width=512, depth=8, heads=16)
    config.model = dict(name="vit", size=variant, class_token=True, positions="sincos2d")
    config.training = dict(duration=f"{choice['epochs']} epochs", dtype="bfloat16")
    config.optimizer = dict(
        name="adamw", base_lr=1.5e-4, b1=0.9, b2=0.95, weight_decay=0.05, schedule="warmup_cosine", warmup="40 epochs"
    )  # fmt: skip
    probe = dict(protocol="mae", representation="cls", augment=dict(crop=dict(scale=(0.08, 1.0)), flip=True))
    config.downstream = dict(linear_probe=probe, finetune=finetune(variant, recipe) | dict(scratch=scratch(variant)))
    if choice["stage"] != "pretrain":
        supervise(config, finetune(variant, recipe) if choice["stage"] == "finetune" else scratch(variant))
    return config


def supervise(config: ConfigDict, recipe: dict) -> None:
    """Makes of the pre-training the training of a classifier by `recipe`."""
    config.task = dict(name="classification", **recipe["task"])
    config.model.update(recipe["model"])
    config.data.update(batch_size=recipe["batch_size"], augment=recipe["data"]["augment"])
    config.training.update(recipe["training"])
    config.optimizer = recipe["optimizer"]
    config.downstream = dict(classification=dict())


def finetune(variant: str, recipe: str) -> dict:
    """Table 9, or FINETUNE.md."""
    repository = recipe == "repository"
    small = repository and variant == "B"
    optimizer = dict(
        name="adamw", base_lr=5e-4 if small else 1e-3, layer_decay=0.65 if small else 0.75, b1=0.9, b2=0.999,
        weight_decay=0.05, schedule="warmup_cosine", warmup="5 epochs", rules=dict(weight_decay=DECAY),
    )  # fmt: skip
    augment = dict(AUGMENT)
    if repository:
        optimizer["min_lr"] = 1e-6
        augment["erase"] = dict(prob=0.25, fill="pixel")
    return dict(
        task=dict(pooling="mean" if repository else "cls", mix=dict(MIX)),
        model=dict(drop_path=DROP_PATH[recipe][variant]),
        data=dict(augment=augment),
        training=dict(duration=f"{EPOCHS[variant]} epochs"),
        optimizer=optimizer,
        batch_size=1024,
    )


def scratch(variant: str) -> dict:
    """Table 11. Its learning rate is the paper's own choice; the images seen are three to four times those of table 9."""
    return dict(
        task=dict(pooling="cls", mix=dict(MIX)),
        model=dict(drop_path=0.1 if variant == "B" else 0.2),
        data=dict(augment=dict(AUGMENT)),
        training=dict(duration=f"{300 if variant == 'B' else 200} epochs", ema=0.9999),
        optimizer=dict(
            name="adamw", base_lr=1e-4, b1=0.9, b2=0.95, weight_decay=0.3, schedule="warmup_cosine", warmup="20 epochs",
            rules=dict(weight_decay=DECAY),
        ),
        batch_size=4096,
    )  # fmt: skip
