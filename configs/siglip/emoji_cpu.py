r"""SigLIP on emoji: the pairwise sigmoid loss with the data, tower sizes and schedule of configs/clip/emoji_cpu.py.

Zhai et al. 2023 (arXiv:2303.15343): each of the 128 x 128 pairs is a binary classification; initial scale 10 and bias -10; an
attention-pooling head, tanh-GELU.

    ssl-jax run --config=configs/siglip/emoji_cpu.py --workdir=runs/siglip_emoji

Two CPU cores, about as long as configs/clip/emoji_cpu.py. Not measured: no interval is expected.
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    path = pathlib.Path(__file__).parents[1] / "clip/emoji_cpu.py"
    spec = importlib.util.spec_from_file_location("emoji_cpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.task.update(loss="sigmoid", max_scale=None)
    config.model.update(image_projection=False, projection_bias=True)
    config.model.image.update(pooling="attention", activation="gelu_tanh")
    config.model.text.update(activation="gelu_tanh")
    config.optimizer.update(b2=0.95, eps=1e-8, weight_decay=0.1)
    config.expected = ConfigDict()  # the inherited ones are CLIP's
    return config
