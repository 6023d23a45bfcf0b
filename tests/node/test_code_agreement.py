"""Which code the network agreed on, and who may not vote for that reason."""

import asyncio
from collections.abc import Mapping, Sequence

from contracts.engine import manifest_hash
from node.config import MemberConfig, NetworkConfig
from node.errors import Unavailable
from node.keys import SigningKey
from node.peers import PeerInfo
from node.runtime.clock import Clock
from node.runtime.code_agreement import CodeAgreement, differing
from node.wire import FetchManifest, Manifest, Reply, Request, WireMessage
from tests.node.mesh_kit import until

OURS = ("hansa/contracts 1 python 3.11", "settlement 1", "contracts.sdk " + "a" * 64, "contracts.old " + "c" * 64)
THEIRS = ("hansa/contracts 1 python 3.12", "settlement 2", "contracts.sdk " + "b" * 64, "contracts.new " + "d" * 64)
OWN, OTHER = manifest_hash(OURS), manifest_hash(THEIRS)
MEMBERS = ("bank-a", "bank-b", "bank-c", "bank-d")


class Links:
    """Peers that announce a contracts hash, and answer with a manifest."""

    def __init__(self) -> None:
        self.announced: dict[str, bytes | None] = dict.fromkeys(MEMBERS[1:])
        self.manifests: dict[str, Sequence[str]] = {}
        self.asked: list[str] = []
        self.sent: list[tuple[str, WireMessage]] = []

    def peers(self) -> tuple[PeerInfo, ...]:
        return tuple(
            PeerInfo(name, "", True, None, 0, 0, announced, None, 0, 0, "")
            for name, announced in self.announced.items()
        )

    async def request(self, peer: str, message: Request, timeout_s: float) -> Reply:
        self.asked.append(peer)
        if peer not in self.manifests:
            raise Unavailable("peer_gone", peer)
        return Manifest(0, tuple(self.manifests[peer]))

    def send(self, peer: str, message: WireMessage) -> bool:
        self.sent.append((peer, message))
        return True

    connected: tuple[str, ...] = MEMBERS[1:]

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def broadcast(self, message: WireMessage) -> None: ...

    def refusals(self) -> Mapping[str, int]:
        return {}

    def set_members(self, members: Sequence[MemberConfig]) -> None: ...

    def set_contracts(self, contracts_hash: bytes) -> None: ...


class Case:
    """bank-a's agreement: `last_block` was made by that code, the peers announce theirs in order."""

    def __init__(self, last_block: bytes | None, *announced: bytes | None) -> None:
        keys = [SigningKey.generate().public for _ in range(8)]
        members = tuple(
            MemberConfig(name, "validator", f"127.0.0.1:{7600 + index}", keys[index], keys[4 + index])
            for index, name in enumerate(MEMBERS)
        )
        self.links = Links()
        self.links.announced.update(zip(MEMBERS[1:], announced, strict=False))
        self.changes = 0
        self.code = CodeAgreement(
            NetworkConfig("code", members),
            "bank-a",
            OURS,
            last_block,
            self.links,
            Clock(),
            self._changed,
            self._failed,
        )

    def _changed(self) -> None:
        self.changes += 1

    @staticmethod
    def _failed(error: BaseException) -> None:
        raise error

    async def judged(self) -> bool:
        """Whether other code was agreed on."""
        self.code.judge()
        await asyncio.sleep(0)
        return self.code.differs


async def test_alike_or_unknown_is_no_difference() -> None:
    assert not await Case(None).judged()
    assert not await Case(OWN).judged()
    assert not await Case(None, OTHER, OTHER).judged(), "two of four are no quorum"


async def test_the_code_of_the_last_block_is_the_agreed_one() -> None:
    case = Case(OTHER)
    assert case.code.differs, "known before anybody was met"
    assert await case.judged()


async def test_a_network_that_was_upgraded_together_votes_at_once() -> None:
    case = Case(OTHER, OWN)
    assert await case.judged(), "two of four are no quorum"
    case.links.announced["bank-c"] = OWN
    assert not await case.judged()
    assert case.changes == 1
    case.links.announced["bank-c"] = OTHER
    assert await case.judged()


async def test_who_was_left_behind_does_not_vote() -> None:
    assert await Case(OWN, OTHER, OTHER, OTHER).judged()


async def test_fewer_than_a_quorum_talk_nobody_into_silence() -> None:
    assert not await Case(OWN, OTHER, OTHER, OWN).judged()


async def test_the_differing_modules_are_named_from_a_manifest_that_proves_itself() -> None:
    case = Case(OTHER, OTHER, OTHER, OTHER)
    case.links.manifests = {"bank-b": OURS, "bank-c": THEIRS}
    assert await case.judged()
    await until(lambda: "settlement" in case.code.sentence)
    assert case.links.asked == ["bank-b", "bank-c"], "what bank-b said has not the agreed digest"
    assert "contracts.sdk" in case.code.sentence
    await case.code.close()


def test_what_differs_between_two_manifests() -> None:
    assert differing(OURS, OURS) == []
    assert differing(OURS, THEIRS) == [
        "contracts.new (not here)",
        "contracts.old (here only)",
        "contracts.sdk",
        "python and semantics (hansa/contracts 1 python 3.11 here, hansa/contracts 1 python 3.12 there)",
        "settlement (1 here, 2 there)",
    ]


async def test_whoever_asks_is_told_which_code_runs_here() -> None:
    case = Case(None)
    case.code.on_fetch("bank-b", FetchManifest(7))
    assert case.links.sent == [("bank-b", Manifest(7, OURS))]


async def test_a_change_of_versions_at_a_height_is_no_difference_of_code() -> None:
    case = Case(OWN, OWN, OWN, OTHER)
    assert not await case.judged()
    later = (*OURS, "settlement 3")
    case.code.on_active(later, ())
    # The links stand, and what they were greeted with is what this node's own code was then.
    assert not await case.judged()
    assert case.code.own == manifest_hash(later)
    assert case.code.former == (OWN,)
    case.links.announced["bank-d"] = case.code.own
    assert not await case.judged()


async def test_a_version_that_the_ledger_names_and_that_is_not_here_takes_the_vote_whatever_others_run() -> None:
    case = Case(OWN, OWN, OWN, OWN)
    case.code.on_active(OURS, ("claims 2 (not here)",))
    assert await case.judged()
    assert case.code.sentence == "claims 2 (not here)"
    assert case.changes == 1
    assert not case.links.asked, "nobody has to be asked what the ledger says"
    case.code.on_active(OURS, ())
    assert not await case.judged()


async def test_who_cannot_execute_the_next_block_votes_again_once_it_has() -> None:
    case = Case(OWN, OWN, OWN, OWN)
    case.code.on_missing("block 9 makes claims 2 active, which is not here")
    assert await case.judged()
    assert "claims 2" in case.code.sentence
    case.code.on_applied(OWN)
    assert not await case.judged()
