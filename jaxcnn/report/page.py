"""The page: plain functions that make HTML of words, figures and pictures. Everything that is told is escaped here.

The page needs no network and allows none: its policy forbids all but what it holds itself.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as escape_html
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcnn.data.sheet import Row, draw, png
from jaxcnn.files import read_text
from jaxcnn.report.palette import css_variables
from jaxcnn.terminal import shown

_HERE = Path(__file__).parent
PIXELS_UP_TO = 72  # longer images are photographs: shown smoothly, stored as JPEG
LONG_NAME = 24  # letters from which a name may be broken anywhere
STORED_UP_TO = 200  # pixels: the longest side of an image in the page


@dataclass(frozen=True)
class Section:
    """A titled piece of the page, and the PNG files that belong to it."""

    title: str
    body: str  # HTML
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # by the file's name


@dataclass(frozen=True)
class Chapter:
    """The sections of a run, or of all of them."""

    title: str
    sections: Sequence[Section]
    lead: str = ""  # HTML


def page(title: str, lead: str, chapters: Sequence[Chapter], *, footer: str) -> str:
    """The whole document. Of a single chapter the sections stand for themselves."""
    css = read_text(_HERE / "page.css")
    script = read_text(_HERE / "page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    dark = f"{{ color-scheme: dark; {css_variables(1)} }}"
    themes = (
        f":root {{ color-scheme: light; {css_variables(0)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {dark} }}\n"
        f"@media screen {{ :root[data-theme=dark] {dark} }}\n"
    )
    links, content = [], []
    for number, chapter in enumerate(chapters, start=1):
        name = f"part{number}"
        alone = len(chapters) == 1
        if not alone:
            links.append((name, chapter.title))
            content.append(f'<h2 id="{name}">{words(chapter.title)}</h2>')
        content.append(chapter.lead)
        heading = "h2" if alone else "h3"
        for place, section in enumerate(chapter.sections, start=1):
            anchor = f"{name}-{place}"
            if alone:
                links.append((anchor, section.title))
            content.append(
                f'<section aria-labelledby="{anchor}"><{heading} id="{anchor}">{escape(section.title)}</{heading}>\n'
                f"{section.body}</section>"
            )
    menu = "".join(f'<li><a href="#{anchor}">{words(said)}</a></li>' for anchor, said in links)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{themes}{css}</style>\n</head>\n<body>\n"
        f"<header>\n{lead}\n</header>\n"
        f'<nav aria-label="contents"><div><ul>{menu}</ul>'
        '<button class="theme" type="button">light / dark</button></div></nav>\n'
        "<main>\n" + "\n".join(content) + f"\n</main>\n<footer>{footer}</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Any text as HTML has it, with its control characters written out."""
    return escape_html(shown(text))


def words(text: str) -> str:
    """A name that may be anything, in any direction of writing."""
    return f"<bdi>{escape(text)}</bdi>"


def paragraph(html: str, *, css: str = "") -> str:
    """HTML in a paragraph."""
    return f'<p class="{css}">{html}</p>\n' if css else f"<p>{html}</p>\n"


def absent(reason: str) -> str:
    """The reason that there is nothing here."""
    return paragraph(escape(reason), css="absent")


def code(text: str) -> str:
    """A command, or lines of a file."""
    return f"<pre><code>{escape(text)}</code></pre>\n"


def shaded(pieces: Sequence[tuple[str, float]]) -> str:
    """Pieces of a text, each with a shade from -1, `wrong`'s colour, to 1, `right`'s; 0 has none."""
    spans = []
    for text, shade in pieces:
        colour, share = "right" if shade > 0 else "wrong", round(60 * min(1.0, abs(shade)))
        style = f"background:color-mix(in srgb, var(--{colour}) {share}%, transparent)"
        spans.append(f'<span style="{style}">{escape(text)}</span>')
    return f'<p class="passage">{"".join(spans)}</p>\n'


def figure(content: str, caption: str, *, css: str = "") -> str:
    """A drawing (HTML) and a sentence under it."""
    return f'<figure class="{css}">{content}<figcaption>{escape(caption)}</figcaption></figure>\n'


def grid(figures: Iterable[str]) -> str:
    """Figures beside each other where there is room."""
    return f'<div class="grid">{"".join(figures)}</div>\n'


def tiles(values: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers: (what, value, a word on it)."""
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}{f'<small>{escape(note)}</small>' if note else ''}</dd></div>"
        for what, value, note in values
    )
    return f'<dl class="tiles">{cells}</dl>\n'


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than its words."""

    text: str
    value: float | None = None  # sorted by
    share: float | None = None  # 0 to 1, as a line beneath


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    *,
    caption: str = "",
    label: str = "",
    names: int = 1,
    sortable: bool = False,
) -> str:
    """A table; the first `names` columns are words, the others numbers.

    Args:
      caption: stands above it.
      label: for who does not see it, where there is no caption.
      sortable: by a click on a column's head.
    """

    def head(place: int, title: str) -> str:
        css = "" if place < names else ' class="number"'
        inside = f'<button type="button">{escape(title)}</button>' if sortable and title else words(title)
        return f'<th scope="col"{css}>{inside}</th>'

    def cell(place: int, content: str | Cell) -> str:
        shown_cell = content if isinstance(content, Cell) else Cell(content)
        css = ["number"] if place >= names else ["long"] if len(shown_cell.text) > LONG_NAME else []
        css += ["bar"] if shown_cell.share is not None else []
        style = "" if shown_cell.share is None else f' style="--share:{100 * shown_cell.share:.1f}%"'
        value = "" if shown_cell.value is None else f' data-value="{shown_cell.value:.6g}"'
        kind = f' class="{" ".join(css)}"' if css else ""
        return f"<td{kind}{style}{value}>{words(shown_cell.text)}</td>"

    head_row = "".join(head(*each) for each in enumerate(columns))
    body = "\n".join("<tr>" + "".join(cell(*each) for each in enumerate(row)) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    name = escape(caption or label or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table>{title}'
        f"<thead><tr>{head_row}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def folded(summary: str, html: str, *, is_open: bool = False) -> str:
    """HTML that is shown on demand."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>\n{html}</details>\n"


def picture(image: np.ndarray, alt: str) -> str:
    """An image, uint8 [H, W, 1, 3 or 4], inlined; small ones keep their pixels sharp."""
    height, width, channels = image.shape
    drawn = Image.fromarray(image[:, :, 0] if channels == 1 else image)
    small = max(height, width) <= PIXELS_UP_TO
    target = io.BytesIO()
    if small or channels == 4:
        drawn.save(target, format="PNG", optimize=True)
        kind = "png"
    else:
        drawn.thumbnail((STORED_UP_TO, STORED_UP_TO))
        drawn.save(target, format="JPEG", quality=85)
        kind = "jpeg"
    data = base64.b64encode(target.getvalue()).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" width="{width}" height="{height}"'
        f'{" class=pixels" if small else ""} alt="{escape(alt)}">'
    )


def sheet(rows: Sequence[Row]) -> bytes:
    """Rows of images as one PNG file."""
    return png(draw(rows))
