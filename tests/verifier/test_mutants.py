"""Forged packs are refused, all of them. `scripts/mutate-evidence` makes as many as one likes."""

import pytest

from tests.verifier.packs import World
from tests.verifier.verdicts import run, table


def judge(world: World, mutants: int, seed: int) -> None:
    tallies = run(world.packs, mutants, seed)
    assert all(tally.made for tally in tallies.values())
    assert not [tally.accepted for tally in tallies.values() if tally.accepted], table(tallies)


def test_some_hundred_forged_packs_are_refused(world: World) -> None:
    judge(world, 240, seed=7)


@pytest.mark.slow
def test_ten_thousand_forged_packs_are_refused(world: World) -> None:
    judge(world, 10_000, seed=1)
