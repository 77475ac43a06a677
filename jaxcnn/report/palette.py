"""The page's colours, each for light and for dark: text 4.5 : 1 or more against the paper, lines 3 : 1 or more.

Figures are drawn in the light ones; in the page each becomes the CSS variable of its name (svg.py), so that one drawing
serves both. Neighbours in SERIES differ in lightness too, for eyes that do not tell their hues apart.
"""

PAPER, CARD, INK, SOFT, LINE = "paper", "card", "ink", "soft", "line"
RIGHT, WRONG, ACCENT = "right", "wrong", "accent"
SERIES = tuple(f"series{number}" for number in range(1, 11))

COLOURS: dict[str, tuple[str, str]] = {
    PAPER: ("#fdfdfc", "#14171b"),
    CARD: ("#f5f5f3", "#1c2026"),
    INK: ("#1d2126", "#e8eaed"),
    SOFT: ("#5a626c", "#a3adb8"),  # what may be read second
    LINE: ("#d9dbdd", "#363c45"),
    RIGHT: ("#1f63a8", "#78b4f2"),
    WRONG: ("#b9460f", "#f3a06b"),
    ACCENT: ("#1f62a7", "#77b3f1"),
    # blue, orange, teal, plum, ochre, sky, rose, slate, green, brown
    "series1": ("#2367ad", "#6fb0f4"),
    "series2": ("#d1590a", "#ff9f5e"),
    "series3": ("#077f6c", "#35c4aa"),
    "series4": ("#86358f", "#d692e0"),
    "series5": ("#96780a", "#e0c04a"),
    "series6": ("#2f95c4", "#93dcfa"),
    "series7": ("#bf3a70", "#f58fb8"),
    "series8": ("#56616e", "#b4bfca"),
    "series9": ("#4f8522", "#a5d574"),
    "series10": ("#76452a", "#cf9f7e"),
}


def colour(name: str) -> str:
    """A colour as figures are drawn in."""
    return COLOURS[name][0]


def series(number: int) -> str:
    """The colour of the number-th of some runs or classes, from 0; after ten they come again."""
    return colour(SERIES[number % len(SERIES)])


def css_variables(theme: int) -> str:
    """`--ink: …;` and so on: 0 is light, 1 dark."""
    return " ".join(f"--{name}: {pair[theme]};" for name, pair in COLOURS.items())
