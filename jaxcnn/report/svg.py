"""A figure as SVG to be inlined in a page that is light or dark, and as PNG."""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

from jaxcnn.report.palette import COLOURS, PAPER

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

    target = io.StringIO()
    salt = hashlib.sha256(describe.encode()).hexdigest()[:8]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that matplotlib has no shape of; the browser has
        figure.savefig(target, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Type")))
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    for gid, words in (titles or {}).items():
        text = text.replace(f'<g id="{escape(gid)}">', f"<g><title>{escape(words)}</title>", 1)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    text = re.sub(r"font: (?:\w+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    # In tags, not in what is written: a hundredth of a point will do.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    width, height = (round(72 * side, 2) for side in figure.get_size_inches())
    opening = f'<svg role="img" aria-label="{escape(describe)}" viewBox="0 0 {width:g} {height:g}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def to_png(figure: "Figure") -> bytes:
    """The same on light paper."""
    target = io.BytesIO()
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(target, format="png", dpi=PNG_DOTS_PER_INCH, facecolor=COLOURS[PAPER][0], bbox_inches="tight")
    return target.getvalue()
