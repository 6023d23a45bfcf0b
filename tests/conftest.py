"""Settings of all tests, and the order of their files."""

from pathlib import Path

import pytest
from hypothesis import settings

# A slow example says that the machine is busy, and nothing about what is tested.
settings.register_profile("hansa", deadline=None)
settings.load_profile("hansa")

FIRST = (
    "simulation/test_seeds.py",
    "stalls/test_stalls.py",
    "simulation/test_instances.py",
    "node/test_api.py",
    "node/test_cli.py",
    "node/test_log_tail.py",
    "node/test_backup.py",
    "simulation/nodes/test_scenes.py",
    "node/test_gossip.py",
    "node/test_store.py",
    "crash/test_points.py",
    "node/test_mempool.py",
    "scripts/test_replay.py",
    "simulation/test_controls.py",
    "simulation/test_coverage.py",
    "simulation/nodes/test_nodes.py",
    "simulation/test_image.py",
)
"""The files that take longest, and those of few long tests. A file stays with one process: one of these begun at
the end would be waited for while the others have nothing left to do."""

TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `FIRST` come before all others, which stay as they were."""
    places = {TESTS / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))
