"""Colours for classes that people with any kind of colour vision can tell apart.

Okabe & Ito 2008, "Color Universal Design", without black, which is for outlines. There are seven;
of more classes, every eighth has the same one.
"""

Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
)


def colour_of(label: int) -> Colour:
    """Return the colour of a class."""
    return COLOURS[label % len(COLOURS)]


def ink_on(colour: Colour) -> Colour:
    """Return black or white, whichever is easier to read on a colour (WCAG 2.2, contrast ratio)."""
    return (0, 0, 0) if luminance(colour) > 0.179 else (255, 255, 255)


def luminance(colour: Colour) -> float:
    """Return the relative luminance of a colour, 0 to 1, as WCAG 2.2 defines it."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in colour)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
