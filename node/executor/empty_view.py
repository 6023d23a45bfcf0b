"""The state on which genesis is executed. Pure."""

from collections.abc import Iterator

from node.ledger import EventData, HeadRecord


class EmptyView:
    """The state before genesis."""

    @property
    def head(self) -> HeadRecord:
        """There is none."""
        raise ValueError("nothing stands before genesis")

    def get(self, key: bytes) -> bytes | None:
        """Return None."""
        return None

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield nothing."""
        yield from ()

    def bucket(self, name: str) -> bytes | None:
        """Return None."""
        return None

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield nothing."""
        yield from ()

    def requests_due(self, from_ms: int, before_ms: int, limit: int) -> list[tuple[int, bytes]]:
        """Return nothing."""
        return []

    def events(self, topic: str, from_height: int, to_height: int, limit: int) -> list[tuple[int, EventData]]:
        """Return nothing."""
        return []
