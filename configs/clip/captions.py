r"""CLIP on one's own captions: a table of image files and texts, from scratch or from published towers.

    ssl-jax run --config=configs/clip/captions.py --config.data.train=csv:captions.csv --workdir=runs/clip
    ssl-jax retrieve --workdir=runs/clip --text="a red bicycle" --images=folder:DIR

captions.csv has the columns path and caption (others: --config.data.columns.image=, .text=); sources jsonl:, parquet: and tar:
work too. Radford et al. 2021 (arXiv:2103.00020) at a size for 10,000 to a million pairs; a tenth is held out. Each tower can
start from other weights: --config.task.init.image=runs/mae, --config.task.init.text=hf:DIR. Not measured.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="csv:captions.csv", holdout=0.1, batch_size=256, image_size=128, context_length=32)
    config.data.tokenizer = dict(name="wordpiece", size=8192)
    config.data.normalize = "imagenet"
    config.task = dict(name="image_text", loss="infonce", same_text="ignore")
    config.model = dict(name="dual_encoder", dim=256)
    config.model.image = dict(patch_size=16, width=256, depth=6, heads=4, positions="learned", pooling="mean")
    config.model.text = dict(width=256, depth=4, heads=4, causal=False, pooling="mean", mask_padding=True)
    config.training = dict(duration="30 epochs", dtype="bfloat16")
    config.optimizer = dict(name="adamw", lr=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, warmup="10 %", clip=1.0)
    config.downstream = dict(retrieval=dict())
    return config
