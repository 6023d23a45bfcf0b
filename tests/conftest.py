"""Settings of all tests, the order of their files, and which slow ones share the machine."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

FAST = bool(os.environ.get("HANSA_FAST"))
"""For every edit: fewer seeds and examples than before a change lands."""
# A slow example says that the machine is busy, and nothing about what is tested.
settings.register_profile("hansa", deadline=None, max_examples=25 if FAST else 100)
settings.load_profile("hansa")

FIRST = (
    "simulation/nodes/test_sweeps.py",
    "simulation/nodes/test_nodes.py",
    "simulation/test_seeds.py",
    "stalls/test_stalls.py",
    "simulation/test_instances.py",
    "node/test_api.py",
    "node/test_cli.py",
    "node/test_sync.py",
    "e2e/test_testnet_commands.py",
    "consensus/test_codec.py",
    "node/test_peers_hostile.py",
    "simulation/test_byzantine.py",
    "simulation/test_mutants.py",
    "simulation/nodes/test_governing.py",
    "node/test_verification.py",
    "node/test_repair.py",
    "node/test_log_tail.py",
    "node/test_backup.py",
    "node/test_snapshot_apart.py",
    "node/test_client.py",
    "scenarios/test_scenarios.py",
    "simulation/nodes/test_scenes.py",
    "node/test_gossip.py",
    "node/test_store.py",
    "crash/test_points.py",
    "node/test_mempool.py",
    "scripts/test_replay.py",
    "simulation/test_controls.py",
    "simulation/test_coverage.py",
    "simulation/test_image.py",
)
"""The files that take longest, and those of few long tests. A file stays with one process: one of these begun at
the end would be waited for while the others have nothing left to do."""

COMPUTING = (
    "consensus/",
    "contracts/",
    "crash/",
    "node/test_backup",
    "node/test_evidence",
    "node/test_keys",
    "node/test_log_tail",
    "node/test_prove_command",
    "node/test_rehearsal",
    "node/test_repair",
    "node/test_replaying",
    "node/test_restore",
    "node/test_retention.py",
    "node/test_snapshot.py",
    "node/test_snapshot_parts",
    "node/test_state_tree",
    "node/test_sync_shown",
    "node/test_transaction_file",
    "node/test_verification",
    "scripts/test_long_chain",
    "simulation/",
    "verifier/",
)
"""How the paths begin whose slow tests only compute: time that another test takes from them changes nothing. All
others run networks of their own in real time and share the machine with one more of their kind, as any new file
does until it is named here."""

TESTS = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files of `FIRST` come before all others, which stay as they were; those of `COMPUTING` are marked."""
    places = {TESTS / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(FIRST)))
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(COMPUTING):
            item.add_marker("computing")
