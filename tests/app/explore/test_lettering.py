"""app.explore.lettering, by the images of the labels that it returns."""

import itertools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import features

from app.explore import lettering
from app.explore.lettering import MAX_LABEL, SYSTEM, Label, load_font, write_labels
from tests.support.fonts import TWO_LETTERS, forget


@pytest.fixture(autouse=True)
def no_system_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lettering, "SYSTEM", ())
    forget()
    yield
    forget()


def ink(label: Label) -> tuple[tuple[int, int], bytes]:
    mask = label.font.getmask(label.text)
    return mask.size, bytes(mask)


def write(name: str) -> str:
    (label,) = write_labels([name], 20)
    return label.text


NAMES = [
    *(
        "cat",
        "grün",
        "gran",
        "grán",
        "łódź",
        "κόσμος",
        "кот",
        "кит",
        "կատու",
        "კატა",
        "חתול",
        "قط",
        "كلب",
    ),
    *("猫", "犬", "とり", "개", "हाथी", "ช้าง", "🐈", "🐕", "❤", "❤\ufe0f", "\ud800"),
    *("ab", "a b", "a\xa0b", "a\u200bb", "a\u200db", "a\nb", "a\x00b", "\u3164", "\u202eab"),
    *("\\u732b", "a\\b", "a\\\\b", "n" * 30 + "a", "n" * 30 + "b", "猫" * 30 + "犬", "猫" * 31),
]


@pytest.mark.parametrize("size", [14, 20])
def test_different_names_look_different(size: int) -> None:
    drawn = {name: ink(label) for name, label in zip(NAMES, write_labels(NAMES, size), strict=True)}
    for first, second in itertools.combinations(NAMES, 2):
        assert drawn[first] != drawn[second], (ascii(first), ascii(second))


@pytest.mark.parametrize("name", ["cat", "grün", "łódź", "ёж", "γάτα", "կատու", "კატა", "ạ̈ 3½"])
def test_letters_of_many_languages_are_written_as_they_are(name: str) -> None:
    (label,) = write_labels([name], 20)
    assert label.text == name
    box = bytes(label.font.getmask("\uffff"))
    assert box
    assert all(bytes(label.font.getmask(letter)) != box for letter in name)


def test_name_in_ascii_has_pillows_own_font() -> None:
    (label,) = write_labels(["sea lion_2"], 20)
    assert label.font.getname() == load_font(20).getname()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("猫", "\\u732b"),
        ("grün 猫", "grün \\u732b"),
        ("🐈", "\\U0001f408"),
        ("a\u200bb", "a\\u200bb"),
        ("a\nb", "a\\nb"),
        ("a\\b", "a\\\\b"),
    ],
)
def test_letter_that_no_font_has_is_written_as_its_escape(name: str, text: str) -> None:
    assert write(name) == text


def test_long_name_is_cut_between_letters() -> None:
    assert write("n" * MAX_LABEL) == "n" * MAX_LABEL
    assert write("n" * 1_000_000) == "n" * (MAX_LABEL - 1) + "…"
    assert write("猫" * 5) == "\\u732b" * 3 + "…"


def test_names_that_are_the_same_when_cut_get_their_numbers() -> None:
    texts = [label.text for label in write_labels(["n" * 30 + "a", "b", "n" * 30 + "c"], 20)]
    assert texts == ["n" * 23 + "… (0)", "b", "n" * 23 + "… (2)"]


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow cannot write from right to left")
def test_names_that_differ_in_blanks_alone_get_their_numbers() -> None:
    texts = [label.text for label in write_labels(["a b", "a  b", "ab", "a b "], 20)]
    assert texts == ["a b (0)", "a  b (1)", "ab", "a b  (3)"]


def test_right_to_left_letters_are_joined_and_turned() -> None:
    (label,) = write_labels(["قط"], 20)
    assert label.text == "قط"
    apart = [label.font.getlength(letter) for letter in label.text]
    assert label.font.getlength(label.text) < sum(apart)


def test_right_to_left_letters_are_escaped_where_their_order_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("PIL._imagingft.HAVE_RAQM", False)
    assert [write("אב"), write("قط"), write("grün")] == ["\\u05d0\\u05d1", "\\u0642\\u0637", "grün"]


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of fonts is set with XDG_DATA_HOME")
def test_font_of_the_system_is_used_for_letters_that_others_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fonts").mkdir()
    shutil.copy(TWO_LETTERS, tmp_path / "fonts" / SYSTEM[0])
    (tmp_path / "fonts" / SYSTEM[1]).write_bytes(b"no font")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(lettering, "SYSTEM", (SYSTEM[1], "missing.ttf", SYSTEM[0]))
    label, umlaut, other = write_labels(["字", "ü", "字猫"], 20)
    assert [label.text, umlaut.text, other.text] == ["字", "ü", "\\u5b57\\u732b"]
    assert label.font.getname() == ("Two letters", "Regular")
    assert umlaut.font.getname() == other.font.getname() == ("DejaVu Sans", "Book")
