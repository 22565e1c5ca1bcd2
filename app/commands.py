"""Shared by the commands of `convscope` and `convscope-train`: printing of errors and names."""

import errno
import io
import sys
from pathlib import Path
from typing import Any

import click


class OneLineErrors(click.Group):
    """A group of commands that prints a known error in one line and exits with status 1.

    So is an error of the operating system, such as a full disk. Characters that the terminal's
    encoding lacks are printed as escapes.
    """

    def __init__(self, *args: Any, errors: type[Exception], **kwargs: Any) -> None:
        """Take click's arguments and the base class of the known errors."""
        super().__init__(*args, **kwargs)
        self._errors = errors

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # there is none if the shell has closed it
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except self._errors as exc:
            raise click.ClickException(printable(str(exc))) from exc
        except OSError as exc:
            if exc.errno == errno.EPIPE:  # click ends without a word
                raise
            place = f"{printable(exc.filename)}: " if isinstance(exc.filename, str) else ""
            raise click.ClickException(f"{place}{exc.strerror or exc}") from exc


def as_unicode(name: str) -> str:
    r"""Return a file's name as text that JSON can hold: bytes that are not UTF-8 become `\xff`."""
    if name.isascii():
        return name
    return "".join(_escape(letter) if "\ud800" <= letter <= "\udfff" else letter for letter in name)


def printable(text: Path | str) -> str:
    """Escape what is not printable: a file's name could move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in str(text))


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode()
