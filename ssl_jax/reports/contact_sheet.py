"""Ranked images beside the captions that they were ranked for."""

import numpy as np
from jaxtyping import Float, Int

from ssl_jax.task import Images

SIDE = 128  # pixels of a cell's shorter side at least: text must stay legible


def text_cell(text: str, height: int, width: int, *, size: int = 14) -> Float[np.ndarray, "{height} {width} 3"]:
    """`text` wrapped and written black on white, in [0, 1]; what does not fit ends in an ellipsis."""
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
    """An image in [0, 1] by a whole factor, in three channels, so that its shorter side has SIDE pixels at least."""
    factor = max(1, -(-SIDE // min(image.shape[:2])))
    image = np.clip(np.asarray(image, np.float32), 0, 1).repeat(factor, 0).repeat(factor, 1)
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def ranked(
    captions: list[str],
    images: Float[np.ndarray, "images height width channels"],
    scores: Float[np.ndarray, "captions images"],
    *,
    top: int,
    own: Int[np.ndarray, "captions"] | None = None,
) -> Images:
    """One row a caption: the caption, its own image (`own`, where known), then the `top` images of the highest score."""
    rows = []
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    for i, caption in enumerate(captions):
        chosen = [images[j] for j in ([] if own is None else [own[i]]) + list(order[i])]
        cells = [enlarged(image) for image in chosen]
        rows.append([text_cell(caption, *cells[0].shape[:2]), *cells])
    columns = ("caption", *(() if own is None else ("its image",)), *(f"{n}" for n in range(1, order.shape[1] + 1)))
    return Images(np.array(rows, np.float32), columns)
