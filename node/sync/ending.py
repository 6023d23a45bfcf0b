"""Work that is ended whole or not begun: no cancellation, however often repeated, reaches into it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """`work` has ended; return what it returns, or raise what it raises, even when cancelled meanwhile.

    Whoever was cancelled is told so, by CancelledError, once `work` has returned. An error goes before the
    cancellation, for it may be a broken disk's: who catches it has to end by itself.

    Why not asyncio.gather behind a shield: a second cancellation goes through gather into `work`.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
