"""What the commands of `convscope` and `convscope-train` share: how they print errors and names."""

import errno
from pathlib import Path
from typing import Any

import click


class OneLineErrors(click.Group):
    """A group of commands that prints a known error in one line and exits with status 1.

    So is an error of the operating system, such as a full disk.
    """

    def __init__(self, *args: Any, errors: type[Exception], **kwargs: Any) -> None:
        """Take click's arguments and the base class of the known errors."""
        super().__init__(*args, **kwargs)
        self._errors = errors

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except self._errors as exc:
            raise click.ClickException(str(exc)) from exc
        except OSError as exc:
            if exc.errno == errno.EPIPE:  # click ends without a word
                raise
            place = f"{printable(exc.filename)}: " if isinstance(exc.filename, str) else ""
            raise click.ClickException(f"{place}{exc.strerror or exc}") from exc


def printable(text: Path | str) -> str:
    """Escape what is not printable: a file's name could move a terminal's cursor."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )
