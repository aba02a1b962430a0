"""The smallest config of each task, with everything on that could break exactness; its data are made by `chaos.make_data`.

Dropout, drop path, augmentation, accumulation, a moving average, several steps a call and evaluations, during the training
and after it: get_config("masked_image") and so on. "classification" is fine-tuning, from the run in $SSL_JAX_CHAOS_DATA/init.
"""

import os

from ml_collections import ConfigDict

TASKS = (
    "masked_image", "next_token", "masked_token", "image_text", "classification", "ijepa", "data2vec_image",
    "self_distillation", "joint_embedding",
)  # fmt: skip


def get_config(arg: str) -> ConfigDict:
    folder = os.environ["SSL_JAX_CHAOS_DATA"]
    config = ConfigDict()
    config.seed = 7
    small = dict(width=16, depth=2, heads=2, mlp_width=32, dropout=0.1, drop_path=0.1)
    language = dict(name="transformer", **small)
    vit = dict(name="vit", patch_size=4, **small)
    images = dict(
        train=f"npz:{folder}/images.npz", test=f"npz:{folder}/images.npz", batch_size=16,
        augment=dict(crop=dict(padding=2), flip=True),
    )  # fmt: skip
    text = dict(train=f"text:{folder}/text.txt", batch_size=8, block=24, holdout=0.1)
    config.training = dict(
        duration="120 steps", accumulation=2, ema=0.95, steps_per_call=3, log_every=5, evaluate_every="18 steps"
    )  # fmt: skip
    config.optimizer = dict(name="adamw", lr=1e-3, weight_decay=0.05, schedule="warmup_cosine", warmup="10 %", clip=1.0)
    config.checkpoint = dict(every=6, keep=2)
    config.downstream = dict()
    if arg == "masked_image":
        config.data, config.model = images, vit
        config.task = dict(name=arg, mask=dict(kind="random", ratio=0.75), decoder=dict(width=16, depth=1, heads=2))
        config.downstream = dict(knn=dict(k=5))
    elif arg == "next_token":
        config.data = dict(text, tokenizer=dict(name="characters"))
        config.task, config.model = dict(name=arg), language
        config.downstream = dict(next_token=dict())
    elif arg == "masked_token":
        config.data = dict(text, tokenizer=dict(name="wordpiece", size=200))
        config.task, config.model = dict(name=arg), language
        config.downstream = dict(masked_token=dict())
    elif arg == "image_text":
        config.data = dict(
            train=f"jsonl:{folder}/pairs.jsonl", test=f"jsonl:{folder}/pairs.jsonl", batch_size=16, image_size=16,
            context_length=12, tokenizer=dict(name="wordpiece", size=200), augment=dict(affine=dict(rotate=10.0)),
        )  # fmt: skip
        config.task = dict(name=arg)
        config.model = dict(name="dual_encoder", image=dict(patch_size=4, **small), text=dict(**small), dim=16)
        config.downstream = dict(retrieval=dict())
    elif arg == "classification":
        config.data, config.model = images, vit
        config.task = dict(name=arg, init=f"{folder}/init", mix=dict(mixup=0.8, smoothing=0.1))
        config.optimizer.layer_decay = 0.75
        config.downstream = dict(knn=dict(k=5))
    elif arg in ("ijepa", "data2vec_image", "self_distillation", "joint_embedding"):
        crops = dict(count=2, augment=dict(crop=dict(scale=(0.3, 1.0)), flip=True, jitter=dict(hue=0.1), blur=dict()))
        views, teacher = {"pair": crops}, dict(ema=dict(start=0.9, end=1.0), weight_decay=dict(start=0.04, end=0.4))
        config.task, config.model = dict(name=arg), dict(vit, patch_size=2) if arg != "self_distillation" else vit
        config.schedules = dict(teacher) if arg != "joint_embedding" else dict(temperature=dict(start=0.5, end=0.1))
        config.training.ema = None
        if arg == "ijepa":
            views, config.task.predictor = {}, dict(width=16, depth=1, heads=2)
        elif arg == "data2vec_image":
            views, config.task.targets = {}, dict(top_blocks=2)
        elif arg == "self_distillation":
            views = {"globals": crops, "locals": dict(crops, image_size=8)}
            config.task.update(prototypes=16, hidden=16, bottleneck=8, patches=dict())
            config.schedules.teacher_temperature = dict(start=0.04, end=0.07, shape="linear", over="50 %")
            config.schedules.lr = (("head/prototypes", dict(start=0.0, end=1.0, shape="step", over="20 steps")),)
        config.data = dict(images, views=views)
        config.downstream = dict(knn=dict(k=5))
    else:
        raise KeyError(arg)
    return config
