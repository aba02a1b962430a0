r"""CLIP ViT-B/16 on Conceptual Captions 3M, a size at which a few GPUs can show whether a change helps.

OpenCLIP's CC3M row (its README): batch 128 x 8 = 1,024, AdamW 1e-3, weight decay 0.1, 10,000 steps of warm-up, 30 epochs,
cosine to 0. Published for the ResNet-50: 18.5 to 20 % ImageNet zero-shot. We know of no published result for a ViT-B/16; half
of the patches are dropped in training (FLIP, arXiv:2212.00794).

    ssl-jax run --config=configs/clip/vit_b16_cc3m.py --workdir=runs/clip_cc3m \
        --config.data.train='tar:/data/cc3m/*.tar' --config.data.test='tfds:coco_captions:test'

Not run here.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="tar:/data/cc3m/*.tar", test="tfds:coco_captions:test", batch_size=1024, image_size=224, context_length=77,
        normalize="clip", workers=16, on_bad_example="skip",
    )  # fmt: skip
    config.data.tokenizer = dict(name="clip", path="bpe_simple_vocab_16e6.txt.gz")
    config.data.augment = dict(crop=dict(scale=(0.9, 1.0)))
    config.task = dict(name="image_text", loss="infonce", mask=dict(kind="random", ratio=0.5))
    config.model = dict(name="dual_encoder", dim=512)
    config.model.image = dict(
        patch_size=16, width=768, depth=12, heads=12, positions="learned", patch_bias=False, pre_norm=True, pooling="cls",
        norm_pooled=True, norm_eps=1e-5, init="normal",
    )  # fmt: skip
    config.model.text = dict(width=512, depth=12, heads=8, causal=True, pooling="eos", init="normal")
    config.training = dict(duration="30 epochs", dtype="bfloat16", log_every=100)
    config.optimizer = dict(
        name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.1, schedule="warmup_cosine", warmup="10_000 steps"
    )
    config.downstream = dict(retrieval=dict(captions="all"))
    return config
