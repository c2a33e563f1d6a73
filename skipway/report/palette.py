"""The colors of plots and reports, each for a light and a dark ground, and the contrast between two of them.

Source: contrast and relative luminance, Web Content Accessibility Guidelines 2.2, section 1.4.3.
"""

__all__ = ["PALETTE", "SERIES", "TEXT", "contrast", "css_variables", "light", "mix"]

# name -> (on a light ground, on a dark ground). Series are the hues of Okabe and Ito, at a contrast that text needs.
PALETTE = {
    "ink": ("#1f2328", "#e4e7ea"),
    "muted": ("#59626b", "#9aa4ae"),
    "ground": ("#ffffff", "#14181c"),
    "soft": ("#f5f7f9", "#1c2228"),
    "note": ("#fff4dc", "#2b2415"),
    "line": ("#dfe3e7", "#30363d"),
    "axis": ("#9aa3ac", "#5d6770"),
    "accent": ("#0067a3", "#6cb6e8"),
    "bad": ("#a84300", "#f0975a"),
    "good": ("#00694a", "#4fc79a"),
    "bar": ("#cfe4f2", "#1d4661"),
    "blue": ("#0067a3", "#6cb6e8"),
    "orange": ("#b34700", "#f0975a"),
    "green": ("#00714f", "#4fc79a"),
    "purple": ("#96447a", "#e09bc8"),
    "brown": ("#7a5200", "#d9b06a"),
    "teal": ("#0b6a71", "#5fc6cf"),
    "right": ("#5ba3cf", "#25587a"),
    "wrong": ("#f0924e", "#8a4a1c"),
}
TEXT = ("ink", "muted", "accent", "bad", "good", "blue", "orange", "green", "purple", "brown", "teal")
SERIES = ("blue", "orange", "green", "purple", "brown", "teal", "ink")


def light(name: str) -> str:
    """Return a color as it is on a light ground."""
    return PALETTE[name][0]


def css_variables(*, dark: bool) -> str:
    """Return the palette as declarations of CSS variables.

    >>> css_variables(dark=True)[:15]
    '--ink: #e4e7ea;'
    """
    return " ".join(f"--{name}: {colors[dark]};" for name, colors in PALETTE.items())


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colors "#rrggbb", from 1 (equal) to 21 (black and white).

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def mix(color: str, ground: str, share: float) -> str:
    """Return `color` drawn on `ground` with this opacity.

    >>> mix("#000000", "#ffffff", 0.5)
    '#808080'
    """
    pairs = zip(_channels(color), _channels(ground), strict=True)
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def _channels(color: str) -> list[int]:
    return [int(color[i : i + 2], 16) for i in (1, 3, 5)]


def _luminance(color: str) -> float:
    shares = [channel / 255 for channel in _channels(color)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
