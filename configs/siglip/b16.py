r"""SigLIP ViT-B/16 at 224 pixels.

Zhai et al. 2023 (arXiv:2303.15343): pairwise sigmoid loss, scale 10 and bias -10 to begin with, batch 32,768 ("32k is
enough"), a vocabulary of 32,000, context 64, a text tower of 12 layers pooled at its last position, an attention-pooling head
for images. Learning rate 1e-3, weight decay 0.01 and 3 % warm-up are those of big_vision's public example; the paper trains on
WebLI, which is not public, so that its figures cannot be reproduced. The data and the length are the user's choice.

    ssl-jax run --config=configs/siglip/b16.py --workdir=runs/siglip_b16 \
        --config.data.train='tar:/data/datacomp/*.tar' --config.data.tokenizer.path=tokenizer.json

Not run here. Each device holds its share of the batch x batch logits, which task.logit_chunks bounds.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="tar:/data/datacomp/*.tar", test="tfds:coco_captions:test", batch_size=32_768, image_size=224, context_length=64,
        normalize="half", workers=16, on_bad_example="skip",
    )  # fmt: skip
    config.data.tokenizer = dict(name="file", path="tokenizer.json")
    config.data.augment = dict(crop=dict(scale=(0.9, 1.0)), flip=False)
    config.task = dict(name="image_text", loss="sigmoid", max_scale=None)
    config.model = dict(name="dual_encoder", dim=768, image_projection=False, projection_bias=True)
    config.model.image = dict(
        patch_size=16, width=768, depth=12, heads=12, positions="learned", class_token=False, pooling="attention",
        activation="gelu_tanh", norm_eps=1e-6, remat="dots",
    )  # fmt: skip
    config.model.text = dict(
        width=768, depth=12, heads=12, causal=False, pooling="last", activation="gelu_tanh", norm_eps=1e-6,
        init="xavier_uniform", remat="dots",
    )  # fmt: skip
    config.training = dict(duration="9e9 examples", dtype="bfloat16", log_every=100)
    config.optimizer = dict(
        name="adamw", lr=1e-3, b1=0.9, b2=0.95, weight_decay=0.01, schedule="warmup_cosine", warmup="3 %", clip=1.0
    )
    config.checkpoint = dict(every_minutes=30.0)
    config.downstream = dict(retrieval=dict(captions="all"))
    return config
