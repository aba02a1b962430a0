r"""CLIP on emoji with an image tower from a masked autoencoder of the same pictures; compare with configs/clip/emoji_cpu.py.

    ssl-jax run --config=configs/clip/emoji_mae.py --workdir=runs/emoji_mae
    ssl-jax run --config=configs/clip/emoji_from_mae.py --workdir=runs/clip_emoji_from_mae
    ssl-jax run --config=configs/clip/emoji_cpu.py --workdir=runs/clip_emoji          # from scratch
    ssl-jax report runs/clip_emoji_from_mae runs/clip_emoji

Another autoencoder: --config.task.init.image=DIR. All else but the image tower's initial values is that of emoji_cpu.py.
"""

import importlib.util
import pathlib

from ml_collections import ConfigDict


def get_config(init: str = "runs/emoji_mae") -> ConfigDict:
    spec = importlib.util.spec_from_file_location("emoji_cpu", pathlib.Path(__file__).with_name("emoji_cpu.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.task.init = dict(image=init)
    config.expected = ConfigDict()  # the inherited ones are for a tower from scratch
    return config
