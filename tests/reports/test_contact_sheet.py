"""Sheets of ranked images and captions: the order is that of the scores, and only a right answer is framed."""

import numpy as np

from ssl_jax.reports.contact_sheet import FRAME, GREEN, SIDE, described, ranked, text_cell

SHADES = np.linspace(0.2, 0.8, 4, dtype=np.float32)
IMAGES = np.ones((4, 16, 16, 3), np.float32) * SHADES[:, None, None, None]
SCORES = np.array([[0.1, 0.9, 0.5, 0.2], [0.8, 0.1, 0.2, 0.7]], np.float32)


def shades(row) -> list[float]:
    return [round(float(cell[SIDE // 2, SIDE // 2, 0]), 3) for cell in row]


def has_frame(cell) -> bool:
    edge = np.concatenate([cell[:FRAME].reshape(-1, 3), cell[:, -FRAME:].reshape(-1, 3)])
    return bool(np.all(np.abs(edge - np.float32(GREEN)) < 1e-6))


def test_images_stand_in_the_order_of_their_scores_and_the_own_one_is_framed():
    panel = ranked(("a cat", "a dog"), IMAGES, SCORES, top=2, own=np.array([2, 1]))
    assert panel.columns == ("caption", "its image", "1", "2") and panel.array.shape == (2, 4, SIDE, SIDE, 3)
    assert [shades(row[1:]) for row in panel.array] == [
        [round(float(SHADES[i]), 3) for i in places] for places in ((2, 1, 2), (1, 0, 3))
    ]
    assert [[has_frame(cell) for cell in row] for row in panel.array] == [[False, False, False, True], [False] * 4]


def test_captions_of_an_image_and_any_own_one_is_framed():
    captions = ("a cat", "the cat", "a dog", "a bird")
    panel = described(IMAGES[:2], captions, SCORES, top=3, own=((0, 1), (2,)))
    assert panel.columns == ("image", "its caption", "1", "2", "3") and shades(panel.array[:, 0]) == shades(
        IMAGES[:2].repeat(8, 1).repeat(8, 2)
    )
    for row, places in zip(panel.array, ((0, 1, 2, 3), (2, 0, 3, 2)), strict=True):
        for cell, place in zip(row[1:], places, strict=True):
            wanted = text_cell(captions[place], SIDE, SIDE)
            np.testing.assert_array_equal(cell[FRAME:-FRAME, FRAME:-FRAME], wanted[FRAME:-FRAME, FRAME:-FRAME])
    assert [[has_frame(cell) for cell in row] for row in panel.array] == [
        [False, False, True, False, False],
        [False] * 4 + [True],
    ]


def test_a_long_caption_ends_in_an_ellipsis_inside_its_cell():
    short, long = text_cell("a cat", 60, 100), text_cell("a very long caption " * 20, 60, 100)
    assert short.shape == long.shape == (60, 100, 3) and long.min() < 0.5 and np.all(long[-3:] == 1)
