"""What the C library's allocator keeps of memory that was freed. Where that is not glibc, nothing happens here."""

import contextlib
import ctypes
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
LARGE_BYTES = 1024 * 1024


def give_back_large() -> None:
    """From now on, what is allocated of LARGE_BYTES or more goes back to the system when it is freed.

    Why: tables of names that come and go (gossip, recent transactions) are made anew, some megabytes each, every
    few minutes. glibc keeps the place of the first one in its heap, where smaller things then settle, and the next
    one finds no room there: a node's memory grew by the size of a table now and then.
    """
    with contextlib.suppress(AttributeError, OSError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(M_MMAP_THRESHOLD, LARGE_BYTES)
        # Set, the one stops the other from growing with use: without this, the heap's end would go and come.
        set_option(M_TRIM_THRESHOLD, 16 * LARGE_BYTES)


def give_back_free() -> None:
    """What lies free in the heap goes back to the system: after work that is done once in a long while."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
