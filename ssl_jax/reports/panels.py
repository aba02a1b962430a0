"""Panels as files: sheets of images with column captions, and text."""

import io
import os
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from ssl_jax.task import Images, Text

GAP, MARGIN, CAPTION, LINE = 4, 8, 22, 15  # LINE: an additional line of a caption
SMALLEST = 96  # smaller images are enlarged by a whole factor to at least this many pixels


def image_sheet(panel: Images) -> bytes:
    """Return the PNG of a panel: rows of images under their columns' captions; small images are enlarged without smoothing.

    Values outside [0, 1] are clipped, and NaN is black. One channel is grey; of three or more, the first three are RGB.
    """
    from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

    pixels = _bytes(panel.array)
    rows, columns, height, width, _ = pixels.shape
    scale = max(1, -(-SMALLEST // min(height, width)))
    cell_h, cell_w = height * scale, width * scale
    font = ImageFont.load_default(13)
    captions = [wrapped(panel.columns[c] if c < len(panel.columns) else "", font, cell_w) for c in range(columns)]
    top = MARGIN + CAPTION + LINE * (max(map(len, captions)) - 1)
    size = (2 * MARGIN + columns * cell_w + (columns - 1) * GAP, top + rows * cell_h + (rows - 1) * GAP + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for c in range(columns):
        left = MARGIN + c * (cell_w + GAP)
        for number, line in enumerate(captions[c]):
            draw.text((left, MARGIN + LINE * number), line, fill="black", font=font)
        for r in range(rows):
            image = Image.fromarray(pixels[r, c]).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(image, (left, top + r * (cell_h + GAP)))
    note = PngImagePlugin.PngInfo()
    note.add_text("Description", ", ".join(panel.columns))
    note.add_text("Comment", panel.note)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()


def _bytes(array: Float[np.ndarray, "rows columns height width channels"]) -> np.ndarray:
    """Return u8 images with three channels."""
    array = np.nan_to_num(np.asarray(array, np.float32), nan=0.0)
    channels = array.shape[-1]
    if channels == 1:
        array = np.repeat(array, 3, axis=-1)
    elif channels == 2:
        array = np.concatenate([array, np.zeros_like(array[..., :1])], axis=-1)
    return (np.clip(array[..., :3], 0, 1) * 255 + 0.5).astype(np.uint8)


def wrapped(text: str, font, width: int) -> list[str]:
    """Return a caption in lines of at most `width` pixels, broken between words, or within a word that is too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for character in word:
            if lines[-1] and font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return lines[1:] if not lines[0] and len(lines) > 1 else lines


def save_panels(panels: Mapping[str, Images | Text], directory: str | os.PathLike) -> list[pathlib.Path]:
    """Write each panel of a task as NAME.png or NAME.txt into `directory`, where a report finds it; return the paths."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, panel in panels.items():
        stem = re.sub(r"[^\w.+-]+", "_", name).strip(".") or "panel"
        if isinstance(panel, Text):
            path, content = directory / f"{stem}.txt", "\n".join(panel.lines).encode() + b"\n"
        else:
            path, content = directory / f"{stem}.png", image_sheet(panel)
        write(path, content)
        paths.append(path)
    return paths


def write(path: pathlib.Path, content: bytes) -> None:
    """Write a file atomically, so that a reader never sees a part of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(content)
    os.replace(scratch, path)
