"""Sheets of images ranked for captions, and of captions ranked for images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.task import Images

SIDE = 128  # least pixels of a cell's shorter side, so that text is legible
FRAME, GREEN = 4, (0.12, 0.55, 0.30)  # width in pixels and colour of a correct answer's frame


def text_cell(text: str, height: int, width: int, *, size: int = 14) -> Float[np.ndarray, "{height} {width} 3"]:
    """Return an image in [0, 1] of wrapped `text`, black on white; text that does not fit ends in an ellipsis."""
    from PIL import Image, ImageDraw, ImageFont

    font, image = ImageFont.load_default(size), Image.new("RGB", (width, height), "white")
    draw, lines, line = ImageDraw.Draw(image), [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width - 8:
            lines.append(line)
            line = word
        else:
            line = longer
    lines.append(line)
    rows = max(1, (height - 8) // (size + 4))
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"{lines[rows - 1]} …"]
    draw.multiline_text((4, 4), "\n".join(lines), fill="black", font=font, spacing=4)
    return np.asarray(image, np.float32) / 255


def enlarged(image: Float[np.ndarray, "height width channels"]) -> Float[np.ndarray, "h w 3"]:
    """Return an image in [0, 1] with three channels, enlarged by a whole factor so that its shorter side is at least SIDE."""
    factor = max(1, -(-SIDE // min(image.shape[:2])))
    image = np.clip(np.asarray(image, np.float32), 0, 1).repeat(factor, 0).repeat(factor, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def framed(cell: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 3"]:
    """Return a cell with a green frame over its edge, which marks a correct answer."""
    cell = np.array(cell)
    for edge in (cell[:FRAME], cell[-FRAME:], cell[:, :FRAME], cell[:, -FRAME:]):
        edge[:] = GREEN
    return cell


def ranked(
    captions: Sequence[str],
    images: Float[np.ndarray, "images height width channels"],
    scores: Float[np.ndarray, "captions images"],
    *,
    top: int,
    own: Int[np.ndarray, "captions"] | None = None,
) -> Images:
    """Return one row per caption: the caption, its own image (`own`, if known), then the `top` images with the highest scores.

    If its own image is among them, it is framed.
    """
    rows = []
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    for i, caption in enumerate(captions):
        found = [enlarged(images[j]) for j in order[i]]
        if own is not None:
            found = [framed(cell) if j == own[i] else cell for cell, j in zip(found, order[i], strict=True)]
            found = [enlarged(images[own[i]]), *found]
        rows.append([text_cell(caption, *found[0].shape[:2]), *found])
    columns = ("caption", *(() if own is None else ("its image",)), *(f"{n}" for n in range(1, order.shape[1] + 1)))
    return Images(np.array(rows, np.float32), columns)


def described(
    images: Float[np.ndarray, "images height width channels"],
    captions: Sequence[str],
    scores: Float[np.ndarray, "images captions"],
    *,
    top: int,
    own: Sequence[Sequence[int]],
) -> Images:
    """Return one row per image: the image, the first of its own captions (`own`), then the `top` captions with the highest
    scores. Its own captions are framed.
    """
    rows = []
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    for i, image in enumerate(images):
        cell = enlarged(image)
        texts = [text_cell(captions[j], *cell.shape[:2]) for j in (own[i][0], *order[i])]
        found = [framed(text) if j in own[i] else text for text, j in zip(texts[1:], order[i], strict=True)]
        rows.append([cell, texts[0], *found])
    return Images(np.array(rows, np.float32), ("image", "its caption", *(f"{n}" for n in range(1, order.shape[1] + 1))))
