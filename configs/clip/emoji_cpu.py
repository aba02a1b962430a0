r"""CLIP on emoji: pictures and their names, from scratch, on two CPU cores.

Radford et al. 2021 (arXiv:2103.00020) at the size of 1,384 pairs: a symmetric cross-entropy over 256 pairs, a learned scale.

    ssl-jax run --config=configs/clip/emoji_cpu.py --workdir=runs/clip_emoji

245 held-out emoji: none of them, of their skin tones or of their sisters of another gender, is in training. Zero-shot
classes are CLDR's eight groups, told in plain words. The interval is not set: the whole run has not been measured yet.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="bundled:emoji/train", test="bundled:emoji/test", batch_size=256, image_size=48, context_length=16)
    config.data.tokenizer = dict(name="wordpiece", size=2000, min_frequency=1)
    config.data.augment = dict(affine=dict(rotate=10.0, zoom=(0.85, 1.1), shift=0.06))
    config.data.normalize = "dataset"
    config.task = dict(name="image_text", loss="infonce", same_text="ignore")
    config.model = dict(name="dual_encoder", dim=128)
    config.model.image = dict(patch_size=8, width=128, depth=4, heads=4, positions="learned", pooling="mean", class_token=False)
    config.model.text = dict(width=128, depth=2, heads=4, causal=False, pooling="mean", mask_padding=True)
    config.training = dict(duration="60 epochs", dtype="float32", log_every=20)
    config.optimizer = dict(name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, warmup="10 %", clip=1.0)
    config.downstream = dict(retrieval=dict(), zero_shot=dict(), knn=dict(), linear_probe=dict())
    return config
