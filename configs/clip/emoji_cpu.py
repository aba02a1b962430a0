r"""CLIP on emoji: pictures and their names, from scratch, on two CPU cores.

Radford et al. 2021 (arXiv:2103.00020) at the size of 1,384 pairs: a symmetric cross-entropy over 128 pairs, a learned scale;
half of the patches dropped while it trains (FLIP: Li et al. 2023, arXiv:2212.00794, table 1a).

    ssl-jax run --config=configs/clip/emoji_cpu.py --workdir=runs/clip_emoji

245 held-out emoji: none of them, of their skin tones or of their sisters of another gender, is in training.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="bundled:emoji/train", test="bundled:emoji/test", batch_size=128, image_size=48, context_length=12)
    config.data.tokenizer = dict(name="wordpiece", size=2000, min_frequency=1)
    config.data.augment = dict(affine=dict(rotate=10.0, zoom=(0.85, 1.1), shift=0.06))
    config.data.normalize = "dataset"
    config.task = dict(name="image_text", loss="infonce", same_text="ignore", mask=dict(kind="random", ratio=0.5))
    config.model = dict(name="dual_encoder", dim=128)
    config.model.image = dict(patch_size=8, width=128, depth=4, heads=4, positions="learned", pooling="mean", class_token=False)
    config.model.text = dict(width=128, depth=2, heads=4, causal=False, pooling="mean", mask_padding=True)
    config.training = dict(duration="60 epochs", dtype="float32", log_every=20)
    config.optimizer = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, warmup="10 %", clip=1.0)
    config.downstream = dict(retrieval=dict(), zero_shot=dict(), knn=dict(), linear_probe=dict(l2=(1e-1, 1e-2, 1e-3)))
    return config
