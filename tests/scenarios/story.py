"""What happened during one command, told in a few sentences: who did what, once, in the order in which it began."""

import string
from typing import NamedTuple


class Told(NamedTuple):
    """A sentence without its subject. `height` is set where neighbours of consecutive heights are told as one."""

    singular: str
    plural: str
    text: str
    height: int


class Story:
    """Collects sentences; the same one of several members is told once, with all of them as its subject."""

    def __init__(self) -> None:
        """Nothing has happened. `votes`: whether proposals, prepares and commits are told too."""
        self.votes = False
        self._told: dict[Told, list[str]] = {}
        self._blocks: dict[bytes, str] = {}
        self._count: dict[int, int] = {}

    def block(self, height: int, digest: bytes) -> str:
        """The name of a block: its height and a letter in the order in which the story met them."""
        if digest not in self._blocks:
            count = self._count.get(height, 0)
            self._count[height] = count + 1
            self._blocks[digest] = f"{height}{string.ascii_uppercase[count]}"
        return self._blocks[digest]

    def tell(self, who: str, singular: str, plural: str, text: str, height: int = 0) -> None:
        """Note that `who` did something."""
        subjects = self._told.setdefault(Told(singular, plural, text, height), [])
        if who not in subjects:
            subjects.append(who)

    def vote(self, who: str, singular: str, plural: str, text: str) -> None:
        """Note a vote, where votes are told."""
        if self.votes:
            self.tell(who, singular, plural, text)

    def decided(self, who: str, height: int, block: str, view: int) -> None:
        """Note that `who` decided `height`."""
        if self.votes:
            self.tell(who, "decides", "decide", f" block {block} in view {view}")
        else:
            self.tell(who, "decides", "decide", f" in view {view}", height)

    def fetched(self, who: str, height: int) -> None:
        """Note that `who` got the certified block of `height` from others."""
        self.tell(who, "fetches", "fetch", "", height)

    def end(self) -> list[str]:
        """The sentences since the last call."""
        told, self._told = self._told, {}
        lines: list[str] = []
        rows = [(what, tuple(sorted(who))) for what, who in told.items()]
        while rows:
            what, who = rows.pop(0)
            if what.height == 0:
                lines.append(f"{_subject(what, who)}{what.text}")
                continue
            last = what.height
            while (found := _continued(rows, what, who, last)) is not None:
                last = rows.pop(found)[0].height
            heights = f"height {last}" if last == what.height else f"heights {what.height} to {last}"
            lines.append(f"{_subject(what, who)} {heights}{what.text}")
        return lines


def _subject(what: Told, who: tuple[str, ...]) -> str:
    return f"{' '.join(who)} {what.singular if len(who) == 1 else what.plural}"


def _continued(rows: list[tuple[Told, tuple[str, ...]]], what: Told, who: tuple[str, ...], last: int) -> int | None:
    """The place of the same sentence for the next height, unless something else was told of in between."""
    for place, (other, others) in enumerate(rows):
        if other == what._replace(height=last + 1):
            return place if others == who else None
        if other.height == 0:
            return None
    return None
