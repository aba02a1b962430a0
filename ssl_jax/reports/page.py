"""The building blocks of a page: self-contained HTML that fits any screen, and safe Markdown."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.reports import tables

STYLE = """
:root { color-scheme: light dark; --ground: #f4f5f7; --paper: #ffffff; --text: #22272e; --quiet: #66707d; --line: #e3e6ea;
  --accent: #2563c9; --good: #1f7a48; --bad: #b3261e; --code: #f0f2f5; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151a; --paper: #1b1f26; --text: #d7dce3; --quiet: #8e99a8;
  --line: #343b46; --accent: #6ea8ff; --good: #63cf95; --bad: #ff8a80; --code: #12151a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
header h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--quiet); overflow-wrap: anywhere; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 20px 24px; margin-top: 20px; }
h2 { font-size: 17px; margin: 0 0 14px; } h3 { font-size: 14px; margin: 18px 0 8px; color: var(--quiet); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th { font-weight: 600; color: var(--quiet); font-size: 12.5px; text-align: right; padding: 4px 10px 8px; min-width: 72px; }
td { text-align: right; padding: 6px 10px; border-top: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th:last-child, td:last-child { padding-right: 0; }
table.narrow { width: auto; } table + table, .wide + .wide { margin-top: 18px; }
td.own { font-weight: 650; } td.left, th.left { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .quiet { color: var(--quiet); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(400px, 100%), 1fr)); gap: 20px; }
figure { margin: 0; min-width: 0; } figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figcaption { color: var(--quiet); font-size: 13px; margin: 0 0 8px; overflow-wrap: anywhere; }
.zoom { display: block; cursor: zoom-in; overflow-x: auto; }
.zoom input { position: absolute; opacity: 0; pointer-events: none; }
.zoom input:focus-visible ~ * img, .zoom input:focus-visible ~ img { outline: 2px solid var(--accent); }
.zoom:has(input:checked) { position: fixed; inset: 0; z-index: 9; display: grid; place-items: center; overflow: auto;
  background: var(--ground); cursor: zoom-out; padding: 12px; }
.zoom:has(input:checked) img { width: max(94vw, 900px); max-width: none; height: auto; }
.dense img { min-width: 640px; } .note { font-size: 13px; margin: 8px 0 0; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 0;
  overflow-x: auto; font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
details + details { margin-top: 10px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; margin-bottom: 8px; }
footer { color: var(--quiet); font-size: 12.5px; margin-top: 24px; }
@media (max-width: 600px) { main { padding: 20px 10px 40px; } section { padding: 14px 12px; } header h1 { font-size: 22px; } }
@media print { body { background: none; } section { break-inside: avoid; border: none; padding: 8px 0; } }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """Return one HTML page of `parts`, without references to other files or hosts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n<footer>ssl_jax report</footer>\n</main>\n</body>\n</html>\n"
    )


def text(value: Any) -> str:
    """Escape `value` for HTML."""
    return html.escape(str(value), quote=True)


def section(title: str, body: str) -> str:
    heading = f"<h2>{text(title)}</h2>" if title else ""
    return f"<section>{heading}{body}</section>"


def table(header: Sequence[str], body: Sequence[Sequence[str]], *, own: int | None = None, left: bool = False) -> str:
    """Return an HTML table; column `own` is bold, verdicts are coloured."""

    def cell(i, value):
        colour = "good" if value.endswith("✓") else "bad" if value.endswith(("✗", "not measured")) else ""
        colour = colour or ("quiet" if value == tables.NOTHING else "")
        classes = " ".join(part for part in ("own" if i == own else "", "left" if left else "", colour) if part)
        return f'<td class="{classes}">{text(value)}</td>' if classes else f"<td>{text(value)}</td>"

    side, layout = (' class="left"', ' class="narrow"') if left else ("", "")
    head = "".join(f"<th{side}>{text(name)}</th>" for name in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    lines = "".join("<tr>" + "".join(cell(i, str(value)) for i, value in enumerate(line)) + "</tr>" for line in body)
    return f'<div class="wide"><table{layout}>{head}<tbody>{lines}</tbody></table></div>'


def pairs(values: Mapping[str, Any]) -> str:
    """Return a table of names and values without a header."""
    return table(("", ""), [(key, plain(value)) for key, value in values.items()], left=True)


def picture(images: Mapping[str, bytes], caption: str) -> str:
    """Return a figure in the reader's colour scheme; `images` holds the PNGs "light" and "dark"."""
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{uri(images["dark"])}">'
    image = f'<img alt="{text(caption)}" src="{uri(images["light"])}">'
    return figure(caption, zoom(f"<picture>{dark}{image}</picture>"))


def sheet(caption: str, png: bytes, alt: str, note: str = "") -> str:
    """Return a figure of pixels, enlarged without smoothing, with a line below it."""
    body = zoom(f'<img alt="{text(alt)}" src="{uri(png)}">')
    return figure(caption, f'<div class="sheet">{body}</div>' + (f'<p class="quiet note">{text(note)}</p>' if note else ""))


def figure(caption: str, body: str) -> str:
    heading = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return f"<figure>{heading}{body}</figure>"


def zoom(image: str) -> str:
    """Return an image that a click enlarges to the screen and back, with a checkbox instead of a script."""
    return f'<label class="zoom" title="enlarge"><input type="checkbox" aria-label="enlarge">{image}</label>'


def uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def plain(value: Any) -> str:
    """Return a config's value as text; None is a dash."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(v) for v in value) if not any(isinstance(v, list | tuple) for v in value) else str(value)
    return tables.NOTHING if value is None else str(value)


def duration(seconds: float) -> str:
    """Return seconds as text: "48.2 s", "6 min 05 s", "2 h 14 min"."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def inline(value: str) -> str:
    """Return text from a run for a line of Markdown, without tags and line breaks."""
    return value.replace("<", "&lt;").replace("\n", " ")


def fence(value: str) -> str:
    """Return a Markdown code block with a fence longer than any in its text."""
    ticks = "```"
    while ticks in value:
        ticks += "`"
    return f"{ticks}\n{value.rstrip()}\n{ticks}\n"
