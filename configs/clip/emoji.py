r"""CLIP on emoji at 64 pixels, for one GPU.

Radford et al. 2021 (arXiv:2103.00020) on 1,384 pairs: a ViT-S/8 on whole 64 x 64 pictures, an epoch in one and a third
steps, half of the patches dropped in training (FLIP: Li et al. 2023, arXiv:2212.00794, table 1a).

    ssl-jax run --config=configs/clip/emoji.py --workdir=runs/clip_emoji_gpu

Not yet measured: no interval is expected.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:emoji/train",
        test="bundled:emoji/test",
        batch_size=1024,
        context_length=24,
        workers=8,
        normalize="dataset",
    )
    config.data.tokenizer = dict(name="wordpiece", size=2000, min_frequency=1)
    config.data.augment = dict(affine=dict(rotate=12.0, zoom=(0.8, 1.1), shift=0.08))
    config.task = dict(name="image_text", loss="infonce", same_text="ignore", mask=dict(kind="random", ratio=0.5))
    config.model = dict(name="dual_encoder", dim=256)
    config.model.image = dict(
        patch_size=8, width=384, depth=6, heads=6, positions="learned", pooling="mean", class_token=False, drop_path=0.1
    )
    config.model.text = dict(width=256, depth=4, heads=4, causal=False, pooling="mean", mask_padding=True, dropout=0.1)
    config.training = dict(duration="400 epochs", dtype="bfloat16", log_every=20)
    config.optimizer = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, warmup="10 %", clip=1.0)
    config.downstream = dict(retrieval=dict(), zero_shot=dict(), knn=dict(), linear_probe=dict())
    return config
