"""A scenario file: blocks of comments and commands, and under `----` what is then to be seen."""

from pathlib import Path
from typing import NamedTuple

from tests.scenarios.commands import Director

SEPARATOR = "----"
UNPROVED = "This scenario does not end with `live`: nothing shows that the network goes on."


class Block(NamedTuple):
    """Lines between two empty ones: comments and commands as they stand, and the expected output."""

    lines: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def commands(self) -> list[str]:
        """The commands of this block."""
        return [line for line in self.lines if line and not line.startswith("#")]


def parse(text: str) -> list[Block]:
    """The blocks of a scenario file."""
    blocks = []
    for chunk in text.strip().split("\n\n"):
        lines = [line.rstrip() for line in chunk.strip("\n").split("\n")]
        place = lines.index(SEPARATOR) if SEPARATOR in lines else len(lines)
        blocks.append(Block(tuple(lines[:place]), tuple(lines[place + 1 :])))
    return blocks


def perform(blocks: list[Block]) -> list[Block]:
    """The same blocks with what is really to be seen. Who does not end alive is told so."""
    director = Director()
    seen = []
    for block in blocks:
        output = [line for command in block.commands for line in director.do(command)]
        seen.append(block._replace(expected=tuple(output)))
    if not director.alive:
        seen.append(Block((f"# {UNPROVED}",), ()))
    return seen


def render(blocks: list[Block]) -> str:
    """The text of a scenario file."""
    chunks = []
    for block in blocks:
        expected = (SEPARATOR, *block.expected) if block.expected else ()
        chunks.append("\n".join((*block.lines, *expected)))
    return "\n\n".join(chunks) + "\n"


def replay(path: Path) -> tuple[str, str]:
    """(what the file says, what it would say if it were written from what happens now)."""
    text = path.read_text()
    return text, render(perform(parse(text)))
