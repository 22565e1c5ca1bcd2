"""Fonts of the system, as `app.explore.lettering` finds them."""

from pathlib import Path

from app.explore import lettering

TWO_LETTERS = Path(__file__).with_name("two_letters.ttf")
"""A font of 字 and ü."""


def forget() -> None:
    """Let fonts be looked for again."""
    lettering._system_files.cache_clear()
    lettering._has.cache_clear()
    lettering.load_font.cache_clear()
