"""A figure as SVG to be inlined in a page that is light or dark, and as PNG."""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Container, Mapping
from html import escape
from typing import TYPE_CHECKING

from jaxcnn.report.palette import COLOURS, PAPER
from jaxcnn.terminal import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # takes a moment, and training never wants it

PNG_DOTS_PER_INCH = 160


def to_svg(figure: "Figure", *, describe: str, titles: Mapping[str, str] | None = None) -> str:
    """The figure with its palette's colours as CSS variables and its words as text in the page's font.

    Args:
      describe: for who does not see it.
      titles: by gid of an artist, what is said where a pointer rests on it.
    """
    import matplotlib

    _take_words_as_they_are(figure)
    target, describe = io.StringIO(), shown(describe)
    salt = hashlib.sha256(describe.encode()).hexdigest()[:8]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib has no shape of; the browser has
        figure.savefig(target, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type")))
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    said = {
        f'<g id="{escape(gid)}">': f"<g><title>{escape(shown(words))}</title>" for gid, words in (titles or {}).items()
    }
    text = re.sub(r"<[^>]*>", lambda tag: said.get(tag[0]) or _in_the_page(tag[0], used), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    width, height = (round(72 * side, 2) for side in figure.get_size_inches())
    opening = f'<svg role="img" aria-label="{escape(describe)}" viewBox="0 0 {width:g} {height:g}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def _in_the_page(tag: str, used: Container[str]) -> str:
    """A tag, not what is written between tags, with the page's colours and font, and the ids that are referred to."""
    tag = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", tag)
    for name, (light, _) in COLOURS.items():
        tag = tag.replace(light, f"var(--{name})")
    tag = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a point will do


def _take_words_as_they_are(figure: "Figure") -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)


def to_png(figure: "Figure") -> bytes:
    """The same on light paper."""
    _take_words_as_they_are(figure)
    target = io.BytesIO()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(target, format="png", dpi=PNG_DOTS_PER_INCH, facecolor=COLOURS[PAPER][0], bbox_inches="tight")
    return target.getvalue()
