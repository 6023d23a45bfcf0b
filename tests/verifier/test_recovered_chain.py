"""Two groups of survivors make two histories: each proves itself to who supplies that group's recovery file.

Real drafts, signatures, blocks, certificates and packs; nothing here tells the verifier whom to trust but a test's
own argument, as a person's own file would.
"""

import json
from pathlib import Path

import pytest
from hansa_verify import Refused, main, verify

from node.archive import ArchiveReader, ArchiveWriter, archive_head, archived_block
from node.errors import HansaError
from node.recovery import RecoveryFile
from node.recovery.trust import trusted
from node.signatures import verify as verify_signature
from node.snapshot import SnapshotFolder, make_snapshot, verify_snapshot
from node.verification import verify_archives
from tests.node.ledger_world import transfer
from tests.node.recovery_world import RecoveryWorld

Made = tuple[RecoveryWorld, dict[str, RecoveryFile], dict[str, bytes]]
GROUPS = {"ours": ("bank-a", "bank-b"), "theirs": ("bank-c", "bank-d")}


async def pay(world: RecoveryWorld, bank: str) -> bytes:
    """The pack of a payment that the bank's chain has made final."""
    ledger = world.ledger(bank)
    paid = ledger.transaction("bank-a", transfer("ACC-1", "ACC-2", 10, 1))
    ledger.settle(paid)
    ledger.settle(ledger.transaction("bank-a"))
    pack = await ledger.proving.transaction(paid.tx_id, None)
    ledger.close()
    return pack


@pytest.fixture(params=["plain", "kept"])
async def made(tmp_path: Path, request: pytest.FixtureRequest) -> Made:
    """Both groups have gone on from one block; in the second case ours has kept a block that was prepared."""
    world = RecoveryWorld(tmp_path)
    if request.param == "kept":
        world.prepare(world.built("bank-a"), "bank-a", "bank-b")
    files = {name: world.complete(*banks) for name, banks in GROUPS.items()}
    for name, banks in GROUPS.items():
        world.apply(files[name], *banks)
    return world, files, {name: await pay(world, banks[0]) for name, banks in GROUPS.items()}


def test_each_history_is_proven_by_its_own_recovery_file_alone(made: Made) -> None:
    world, files, packs = made
    genesis = world.network_file.read_bytes()
    anchors = {name: file.encode() for name, file in files.items()}
    for name, banks in GROUPS.items():
        proof = verify(packs[name], genesis, anchors=[anchors[name]])
        assert proof.blocks[-1].signers == list(banks)
        assert any(files[name].digest.hex() in line for line in proof.assumed)
        with pytest.raises(Refused, match="get the recovery file") as refusal:
            verify(packs[name], genesis)
        assert files[name].digest.hex() in str(refusal.value)
        [other] = [anchors[key] for key in anchors if key != name]
        with pytest.raises(Refused, match=r"another one than in the recovery|leaves out a recovery"):
            verify(packs[name], genesis, anchors=[other])


def test_who_anchors_both_histories_is_told_to_choose_one(made: Made) -> None:
    """Where one kept a block, only the recovery blocks' heights were compared, and these differ."""
    world, files, packs = made
    for name in GROUPS:
        with pytest.raises(Refused, match="two anchors for one height"):
            verify(packs[name], world.network_file.read_bytes(), anchors=[file.encode() for file in files.values()])


async def test_a_block_from_before_needs_no_recovery_file_and_survives_one(made: Made) -> None:
    world, files, _ = made
    ledger = world.ledger("bank-c")
    key = ledger.proving.key("settlement", "accounts", ["ACC-1"])
    pack = await ledger.proving.state(key, 2, None)
    ledger.close()
    genesis = world.network_file.read_bytes()
    for anchors in ([], [files["ours"].encode()], [files["theirs"].encode()]):
        assert verify(pack, genesis, anchors=anchors).blocks[0].height == 2


async def test_the_recovery_block_itself_is_proven(made: Made) -> None:
    world, files, _ = made
    ledger = world.ledger("bank-a")
    key = ledger.proving.key("settlement", "accounts", ["ACC-1"])
    recovered = files["ours"].header.height
    for height in range(files["ours"].base_height + 1, recovered + 2):
        pack = await ledger.proving.state(key, height, None)
        genesis, anchor = world.network_file.read_bytes(), files["ours"].encode()
        assert verify(pack, genesis, anchors=[anchor]).blocks[0].height == height
        with pytest.raises(Refused):
            verify(pack, genesis)
    ledger.close()


async def test_the_history_of_the_former_members_is_refused_by_who_trusts_survivors(tmp_path: Path) -> None:
    world = RecoveryWorld(tmp_path)
    world.apply(ours := world.complete("bank-a", "bank-b"), "bank-a")
    pack, genesis = await pay(world, "bank-c"), world.network_file.read_bytes()
    assert verify(pack, genesis).blocks[0].height == 4
    with pytest.raises(Refused, match="leaves out a recovery"):
        verify(pack, genesis, anchors=[ours.encode()])


def test_an_anchor_is_refused_unless_all_its_survivors_have_signed(made: Made) -> None:
    world, files, packs = made
    genesis, whole = world.network_file.read_bytes(), json.loads(files["ours"].encode())
    swapped = [
        {**item, "member": name} for item, name in zip(whole["signatures"], ("bank-b", "bank-a"), strict=True)
    ]
    for change in (
        {"signatures": whole["signatures"][:1]},
        {"signatures": swapped},
        {"survivors": whole["survivors"][:1]},
        {"survivors": [*whole["survivors"], whole["former"][2]]},
        {"view": whole["view"] + 1},
        {"header": json.loads(files["theirs"].encode())["header"]},
        {"kept": "00"},
        {"signatures": 7},
    ):
        with pytest.raises(Refused, match="no recovery file that all its survivors signed"):
            verify(packs["ours"], genesis, anchors=[json.dumps({**whole, **change}).encode()])
    for nonsense in (b"", b"\xff", b"[]", b"null", b"[" * 100_000):
        with pytest.raises(Refused, match="no recovery file"):
            verify(packs["ours"], genesis, anchors=[nonsense])


def test_the_command_takes_anchors(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world, files, packs = made
    (tmp_path / "pack").write_bytes(packs["ours"])
    command = [str(tmp_path / "pack"), "--genesis", str(world.network_file)]
    assert main([*command, "--anchor", str(world.path(files["ours"]))]) == 0
    assert "ASSUMED" in capsys.readouterr().out
    assert main(command) == 1
    assert "get the recovery file" in capsys.readouterr().out
    with pytest.raises(SystemExit) as wrong:
        main([*command, "--anchor", str(world.network_file)])
    assert wrong.value.code == 2


def test_archives_and_snapshots_are_judged_by_the_same_anchor(made: Made, tmp_path: Path) -> None:
    world, files, _ = made
    archives = {}
    for name, banks in GROUPS.items():
        ledger = world.ledger(banks[0])
        view, path = ledger.store.snapshot(), tmp_path / f"{name}.hansa"
        head = archive_head(view, world.network.network_id, world.network.genesis_hash, 3)
        writer = ArchiveWriter(path, head)
        for height in range(3, ledger.store.head.height + 1):
            writer.add(archived_block(view, height))
        writer.finish()
        archives[name] = path
        ledger.close()
    for name in GROUPS:
        for other in (None, *GROUPS):
            network = trusted(world.network, [] if other is None else [world.path(files[other])])
            [report] = verify_archives([archives[name]], network, lambda done, total: None)
            assert report.ok == (name == other), report
    ledger = world.ledger("bank-a")
    steps = make_snapshot(
        ledger.store.snapshot(), world.network.network_id, world.network.genesis_hash, 8, tmp_path / "snapshots"
    )
    folder: SnapshotFolder | None = None
    while folder is None:
        try:
            next(steps)
        except StopIteration as end:
            folder = end.value
    ledger.close()
    named = (world.network.network_id, world.network.genesis_hash, world.network.validators, 8, verify_signature)
    ours, theirs = (trusted(world.network, [world.path(file)]).recoveries for file in files.values())
    assert verify_snapshot(folder, *named, recoveries=ours).height == ledger.executor.head.height
    for recoveries in (theirs, trusted(world.network, []).recoveries):
        with pytest.raises(HansaError, match="recovery_not_trusted"):
            verify_snapshot(folder, *named, recoveries=recoveries)
    with ArchiveReader(archives["ours"]) as reader:
        assert reader.first == 3
