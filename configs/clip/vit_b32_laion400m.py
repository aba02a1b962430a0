r"""CLIP ViT-B/32 on LAION-400M: OpenCLIP's reproduction of Radford et al. 2021.

Radford et al. 2021 (arXiv:2103.00020), tables 18 to 20; Cherti et al. 2023 (arXiv:2212.07143) and OpenCLIP's scripts: batch
256 x 128 = 32,768, AdamW 5e-4, betas 0.9 / 0.98, eps 1e-6, weight decay 0.2, 2,000 steps of warm-up, 32 epochs, cosine to 0,
random-resized crops of 90 to 100 %. Published: 62.96 % ImageNet zero-shot, 128 A100 for 36 h.

    ssl-jax run --config=configs/clip/vit_b32_laion400m.py --workdir=runs/clip_b32 \
        --config.data.train='tar:/data/laion400m/{00000..41455}.tar' --config.data.test='tar:/data/coco/*.tar' \
        --config.data.tokenizer.path=bpe_simple_vocab_16e6.txt.gz

The shards are img2dataset's. Not run here: it needs the data and 128 accelerators. On fewer devices, raise
training.accumulation: the contrastive batch is still 32,768 (GradCache), and task.logit_chunks bounds the memory of the logits.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="tar:/data/laion400m/{00000..41455}.tar", test="tar:/data/coco2014_test/*.tar", batch_size=32_768, image_size=224,
        context_length=77, normalize="clip", workers=16, on_bad_example="skip",
    )  # fmt: skip
    config.data.tokenizer = dict(name="clip", path="bpe_simple_vocab_16e6.txt.gz")
    config.data.augment = dict(crop=dict(scale=(0.9, 1.0)))
    config.task = dict(name="image_text", loss="infonce", logit_chunks=1)
    config.model = dict(name="dual_encoder", dim=512)
    config.model.image = dict(
        patch_size=32, width=768, depth=12, heads=12, positions="learned", patch_bias=False, pre_norm=True, pooling="cls",
        norm_pooled=True, activation="quick_gelu", norm_eps=1e-5, init="normal", remat="dots",
    )  # fmt: skip
    config.model.text = dict(
        width=512, depth=12, heads=8, activation="quick_gelu", causal=True, pooling="eos", init="normal", remat="dots"
    )
    config.training = dict(duration="32 epochs", accumulation=1, dtype="bfloat16", log_every=100)
    config.optimizer = dict(
        name="adamw", lr=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, schedule="warmup_cosine", warmup="2_000 steps"
    )
    config.checkpoint = dict(every_minutes=30.0, keep=2)
    config.downstream = dict(retrieval=dict(captions="all"))
    return config
