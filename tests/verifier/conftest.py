"""One ledger and its packs for all tests of the verifier: they only read."""

from collections.abc import Iterator

import pytest

from tests.verifier.packs import MadePack, World, made_packs


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """A ledger with a past."""
    with made_packs() as made:
        yield made


@pytest.fixture(scope="session")
def packs(world: World) -> dict[str, MadePack]:
    """Its packs by name."""
    return {pack.name: pack for pack in world.packs}
