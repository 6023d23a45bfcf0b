"""How much room the disk has, and what the node does about it long before a write fails.

Invariant: below the reserve this node adds nothing to its disk that can wait. It signs nothing, takes no
transactions, applies no block and fetches none; it answers reads from the state that it has. What is under way at
that moment (records of others' votes, LevelDB's own flushes and compactions) finds its room in the reserve. So only
somebody else who fills the disk to the last byte can make a write fail, and then the node ends with exit code 3.

Room comes and goes in steps: what was stopped goes on at five quarters of the reserve, so that nothing flaps.
"""

import asyncio
from collections.abc import Callable

import structlog

from node.config import DiskSettings
from node.diagnosis.wording import size
from node.errors import Unavailable
from node.runtime.threads import Threads
from node.store.room import require_room, resume_bytes

LOOK_INTERVAL_MS = 1_000
"""The reserve outlasts many such intervals of the fastest writing."""
RETRY_AFTER_MS = 10_000


class DiskSpace:
    """The room on the disk of the data directory. Everything but the look itself runs on the event loop."""

    def __init__(
        self,
        settings: DiskSettings,
        free: Callable[[], int | None],
        threads: Threads,
        on_change: Callable[[], None],
    ) -> None:
        """`free()` tells how many bytes are left. None: nobody can tell; if so at once, nothing is watched.

        `on_change` is called when `low` or `short` have become something else.
        """
        self._settings = settings
        self._free = free
        self._threads = threads
        self._on_change = on_change
        self._log = structlog.get_logger("disk")
        self._room = asyncio.Event()
        self._closed = self._ended = self._blind = False
        self.free_bytes: int | None = None
        """As of the last look that told."""
        self.low = False
        """Whether somebody should free disk before it is short."""
        self.short = False
        """Whether the reserve is reached."""
        self._room.set()
        self._take(free())

    async def watch(self) -> None:
        """Look again and again, in the thread that writes: a disk that hangs holds up no vote and no answer."""
        if self.free_bytes is None:
            return
        while True:
            await asyncio.sleep(LOOK_INTERVAL_MS * 0.001)
            known = (self.low, self.short)
            self._take(await self._threads.write(self._free))
            if (self.low, self.short) != known:
                self._on_change()

    async def room(self) -> None:
        """There is room beyond the reserve; waits for it. Raise CancelledError when the node closes meanwhile."""
        await self._room.wait()
        if self._closed:
            raise asyncio.CancelledError

    def close(self) -> None:
        """Nobody waits for room any more."""
        self._ended = True
        if not self._room.is_set():
            self._closed = True
            self._room.set()

    @property
    def sentence(self) -> str:
        """What is the matter, in bytes, and what ends it; empty while there is room."""
        if not self.short:
            return ""
        enough = size(self._resume_bytes)
        return f"{self._figures()}; free disk: it goes on by itself from {enough} on, without a restart"

    @property
    def warning(self) -> str:
        """What will be the matter when nobody frees disk; empty while there is plenty."""
        if not self.low or self.short:
            return ""
        return f"{size(self.free_bytes or 0)} free; it stops voting below {size(self._settings.reserve_bytes)}"

    def refusal(self) -> Unavailable | None:
        """Why no transaction is taken now, or None."""
        if not self.short:
            return None
        return Unavailable("disk_low", self._figures(), retry_after_ms=RETRY_AFTER_MS)

    def require_room(self, needed_bytes: int, what: str) -> None:
        """So many bytes more can be written by now without the node standing still afterwards; else raise
        Unavailable("disk_low"), which says what for. May be called in threads."""
        free = self._free()
        require_room(self._resume_bytes, self.free_bytes if free is None else free, needed_bytes, what)

    @property
    def _resume_bytes(self) -> int:
        return resume_bytes(self._settings)

    def _figures(self) -> str:
        return f"{size(self.free_bytes or 0)} free, {size(self._settings.reserve_bytes)} kept in reserve"

    def _take(self, free: int | None) -> None:
        """Judge by `free` bytes; from a look that failed nothing is concluded, and what was known stands."""
        if free is None:
            if not self._blind and self.free_bytes is not None:
                self._log.warning("nobody can tell how much room the disk has", last_known_bytes=self.free_bytes)
            self._blind = True
            return
        self.free_bytes, self._blind = free, False
        was_low, was_short = self.low, self.short
        needed = self._resume_bytes if was_short else self._settings.reserve_bytes
        self.short = free < needed
        self.low = free < max(self._settings.low_bytes, needed)
        if not self.short:
            self._room.set()
        elif not self._ended:
            self._room.clear()
        if self.short and not was_short:
            self._log.critical("the disk is nearly full: nothing is voted, taken or applied", reason=self.sentence)
        elif was_short and not self.short:
            self._log.warning("there is room on the disk again", free_bytes=free)
        elif self.low and not was_low:
            self._log.warning("the disk fills up", reason=self.warning)
