"""`ssl-jax data inspect --config --to`: a sheet of what the model will see."""

import numpy as np
import pytest
from PIL import Image

from ssl_jax import cli, preview, runs
from ssl_jax import config as configs

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.data = dict(train="folder:{0}", batch_size=4, image_size=8, eval_crop=1.0, holdout=0.5, augment=dict(flip=True))
    c.task = dict(name="masked_image", mask=dict(ratio=0.75), decoder=dict(width=8, depth=1, heads=2))
    c.model = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
    c.training, c.optimizer = dict(duration="1 steps"), dict(lr=1e-3)
    return c
"""


@pytest.fixture
def config(tmp_path):
    for i in range(8):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, :4], pixels[:, 4:] = 30 * i, 255
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "config.py").write_text(CONFIG.format(tmp_path / "images"))
    return tmp_path / "config.py"


def test_the_sheet_shows_evaluation_augmentation_views_and_mask(config):
    views = {"data.views": "{'pair': {'count': 2, 'image_size': 4}}"}
    panel = preview.sheet(runs.prepare(configs.load(str(config), views)))
    assert panel.columns == ("evaluation", "training 1", "training 2", "training 3", "pair 1", "pair 2", "masked")
    rows = dict(zip(panel.columns, panel.array.swapaxes(0, 1), strict=True))
    for plain, augmented in zip(rows["evaluation"], rows["training 1"], strict=True):
        np.testing.assert_allclose(plain[:, 4:], 1, atol=1e-5)
        assert np.allclose(augmented, plain, atol=1e-5) or np.allclose(augmented, plain[:, ::-1], atol=1e-5)
    assert np.allclose(rows["pair 1"][:, :2], 1) and not np.allclose(rows["pair 1"][:, 2:6, 2:6], 1)  # smaller, on white
    hidden = np.isclose(rows["masked"], 0.5).all((3,)).reshape(len(rows["masked"]), 2, 4, 2, 4).all((2, 4))
    assert (hidden.sum((1, 2)) == 3).all()  # three patches of four


def test_the_command(config, tmp_path, capsys):
    assert cli.main(["data", "inspect", f"--config={config}", f"--to={tmp_path / 'sheets' / 'a.png'}"]) == 0
    said = capsys.readouterr().out
    assert "kind      images, without labels" in said and "examples as they are trained on" in said
    assert Image.open(tmp_path / "sheets" / "a.png").format == "PNG"
    assert cli.main(["data", "inspect", f"folder:{tmp_path / 'images'}", "--to=a.png"]) == 2
    assert "--to=a.png: needs --config=FILE" in capsys.readouterr().err
