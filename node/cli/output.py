"""What a command shows: one JSON document, or a calm table; messages and failures go to stderr."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO, cast

import msgspec
import structlog
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from node.client import error_body
from node.client.answers import ErrorAnswer
from node.client.transaction_file import printable
from node.errors import HansaError

_PIPE_WIDTH = 240
_WORD_MAX = 72
"""A word of so many signs, such as a public key, is never folded: people copy it."""
_GAP = 3


class OutputFailed(OSError):
    """Standard output takes no more, for another reason than that nobody reads it."""


class _StandardError:
    """Standard error as it is when a line is written: who calls a command within a process may redirect it."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _CheckedStream:
    """Standard output that tells its own failures from all others; whatever else is asked of it is the stream's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _told_apart():
            return self._stream.write(text)

    def flush(self) -> None:
        with _told_apart():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(error.errno, error.strerror) from error


@contextlib.contextmanager
def checked_stdout() -> Iterator[None]:
    """While it is open, what cannot be written to standard output raises OutputFailed (BrokenPipeError as ever).

    A sign that the terminal's encoding lacks is written as its number, as standard error does by itself.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stdout(cast(TextIO, _CheckedStream(sys.stdout))):
        yield


def log_to_stderr() -> None:
    """What a part of the node logs while a command uses it stays off standard output, which is the command's alone.

    `hansa run` sets up a log of its own.
    """
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _StandardError())))


class Output:
    """Shows a command's result to a person, or to a program when `as_json`."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        # A pipe has no width of its own, and a cut hash is worth nothing.
        self._console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)

    def document(self, value: Any) -> None:
        """`value` (Structs and plain types) is the command's one JSON document."""
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")

    def line(self, value: Any) -> None:
        """`value` is one JSON line of an endless result."""
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """A line for people."""
        self._console.print(Text(_harmless(text)))

    def styled(self, text: Text) -> None:
        """A line for people, in colour where the terminal has it."""
        self._console.print(text)

    def facts(self, rows: Iterable[tuple[str, object]]) -> None:
        """Names and values in two aligned columns."""
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        texts = [(name, shown(value)) for name, value in rows]
        for name, text in texts:
            table.add_row(Text(name), Text(text))
        longest = max([cell_len(name) for name, _ in texts], default=0)
        self._print(table, longest + _longest_word([text for _, text in texts]) + _GAP)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; columns that hold only integers stand to the right."""
        cells = [list(row) for row in rows]
        texts = [[shown(cell) for cell in row] for row in cells]
        widths = _widths([list(column) for column in zip(columns, *texts, strict=True)], self._console.width)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, column in enumerate(columns):
            number = bool(cells) and all(type(row[place]) in (int, type(None)) for row in cells)
            table.add_column(column, justify="right" if number else "left", overflow="fold", width=widths[place])
        for row in texts:
            table.add_row(*(Text(text) for text in row))
        self._print(table, sum(widths) + _GAP * len(widths))

    def _print(self, table: Table, width: int) -> None:
        """Print the table, which is so wide at least: a narrower terminal breaks the lines itself."""
        wide = Console(width=max(self._console.width, width), height=self._console.height, highlight=False)
        wide.print(table)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """The width of each column of texts: as wide as its longest word at least, and as its longest text if there is
    room for that in a line of `room` signs.
    """
    whole = [max(cell_len(line) for text in column for line in text.splitlines() or [""]) for column in columns]
    widths = [_longest_word(column) for column in columns]
    left = room - sum(widths) - _GAP * len(widths)
    while left > 0 and widths != whole:
        # The column that lacks least gets all of it first: short ones then stand on one line.
        lacking = [(text - width, place) for place, (text, width) in enumerate(zip(whole, widths, strict=True))]
        lack, place = min(item for item in lacking if item[0] > 0)
        widths[place] += min(lack, left)
        left -= min(lack, left)
    return widths


def _longest_word(texts: Iterable[str]) -> int:
    """How wide a column of these texts is at least."""
    return min(max([cell_len(word) for text in texts for word in text.split()], default=0), _WORD_MAX)


def shown(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value) if isinstance(value, str | int) else msgspec.json.encode(value).decode()
    return _harmless(text)


def _harmless(text: str) -> str:
    """The text without what a terminal obeys, but for line ends: reasons, notes and values are another's words."""
    return "\n".join(map(printable, text.split("\n")))


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (done, total) that moves a bar on stderr while a person looks on."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def message(text: str) -> None:
    """One line to stderr. It may quote a stranger's file: what a terminal would obey is shown as its number."""
    sys.stderr.write(printable(" ".join(text.split())) + "\n")


def show_failure(error: HansaError, as_json: bool) -> None:
    """The failure as one line on stderr and, for programs, as the one shape on stdout."""
    sentence = error.message if error.message.endswith((".", "?", "!")) else f"{error.message}."
    try:
        message(f"hansa: {error.code}: {sentence} {error.entry.action}")
    except OSError:
        # No room where standard error leads (the disk that this failure may be about): the exit code must say it,
        # and a line that is left over would turn it into another one at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    if as_json:
        Output(True).document(ErrorAnswer(error=error_body(error)))
