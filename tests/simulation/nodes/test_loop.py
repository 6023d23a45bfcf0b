"""What a killed process leaves of its coroutines: their last steps are taken, and nothing of them waits or
speaks."""

import asyncio
import gc
import inspect
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.simulation.nodes import loop as loops
from tests.simulation.nodes.loop import ProcessLoop, _close
from tests.simulation.nodes.timeline import Timeline


class Never:
    """Something to await that never comes."""

    def __await__(self) -> Any:
        yield self


def begun(coroutine: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    """The coroutine, waiting in its first await."""
    coroutine.send(None)
    return coroutine


def is_closed(coroutine: Coroutine[Any, Any, None]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_a_coroutine_that_waits_in_one_finally_after_the_other_is_led_to_its_end() -> None:
    steps: list[int] = []

    async def waits_everywhere() -> None:
        try:
            try:
                await Never()
            finally:
                steps.append(1)
                await Never()
                steps.append(99)
        finally:
            steps.append(2)
            await Never()

    coroutine = begun(waits_everywhere())
    _close(coroutine)
    assert is_closed(coroutine)
    assert steps == [1, 2]


def test_one_that_has_not_begun_takes_no_step_and_nobody_calls_it_forgotten() -> None:
    steps: list[int] = []

    async def begins() -> None:
        steps.append(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coroutine = begins()
        _close(coroutine)
        assert is_closed(coroutine)
        del coroutine
        gc.collect()
    assert steps == []


FAILURES: dict[str, BaseException] = {
    "an error of its own": ValueError("too late"),
    "one that looks like waiting": RuntimeError("too late"),
    "a cancellation": asyncio.CancelledError(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_one_that_fails_in_its_last_steps_fails_alone(failure: str) -> None:
    async def fails() -> None:
        try:
            await Never()
        finally:
            raise FAILURES[failure]

    coroutine = begun(fails())
    _close(coroutine)
    assert is_closed(coroutine)


def test_one_that_never_ends_is_left_after_so_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "CLEARING_STEPS_MAX", 10)
    steps, over = 0, False

    async def stubborn() -> None:
        nonlocal steps
        while not over:
            try:
                await Never()
            except GeneratorExit:
                steps += 1

    coroutine = begun(stubborn())
    _close(coroutine)
    assert not is_closed(coroutine)
    assert steps == 10
    over = True
    _close(coroutine)
    assert is_closed(coroutine)


def test_a_killed_process_takes_its_last_steps_and_no_other() -> None:
    timeline, errors, said = Timeline(1), list[str](), list[str]()
    process = ProcessLoop(timeline, errors.append)  # type: ignore[abstract]

    def says(text: str) -> Callable[[], None]:
        return lambda: said.append(text)

    async def lives() -> None:
        process.call_later(10, says("a timer"))
        try:
            await process.create_future()
        finally:
            said.append("last step")
            process.call_soon(says("a callback"))
            await process.create_future()
            said.append("after a wait")

    with process.entered():
        task = process.create_task(lives())
    while not said and timeline.now_us < 1_000_000 and task._fut_waiter is None:  # type: ignore[attr-defined]
        timeline.step()
    process.kill()
    timeline.finish()
    assert said[0] == "last step"
    assert "after a wait" not in said
    assert "a timer" not in said
    assert errors == []
    assert is_closed(task.get_coro())  # type: ignore[arg-type]
