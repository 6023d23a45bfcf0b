"""Four real processes under load: a member's voting and TLS key and the payer's own key change.

The member's node is restarted where it is the most delicate: both TLS keys are valid, and its new voting key is
decided on and not yet in force.
"""

import itertools
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from consensus.messages import VoteKind, vote_bytes
from node.client import BlockAnswer, Client
from node.config import load_network
from node.keys import SigningKey, certificate_key, find_passphrase, read_key_file, tls_context
from node.peers.shown_keys import server_name
from node.signatures import verify
from scripts.localnet.founding import key_file
from scripts.localnet.layout import Layout
from scripts.localnet.metrics import gauges
from tests.e2e.assembly import Assembly
from tests.e2e.conftest import Bank, Testnet, agreed
from tests.e2e.load import Load, blocks_from, longest_gap_ms, until

pytestmark = pytest.mark.slow

RESTARTS = 4.0
"""An overlap is as long as so many restarts of the node take here, and a restart falls into its middle."""
OVERLAP_MS_MIN = 6_000
PAID = 10
REFUSED_S = 0.5


class Rotation(NamedTuple):
    """A key, and the one that comes in its place."""

    former: SigningKey
    key: SigningKey


def rotated(testnet: Testnet, says: Assembly, member: str, kind: str) -> Rotation:
    """A new key lies beside the member's own."""
    layout = Layout(testnet.directory)
    phrase = find_passphrase({}, layout.passphrase_file)
    file = key_file(layout, member) if kind == "principal" else layout.member_dir(member) / "keys" / f"{kind}.key"
    made = json.loads(says.done(member, "keys", "rotate", "--kind", kind, "--json"))
    return Rotation(read_key_file(file, phrase)[1], read_key_file(Path(made["file"]), phrase)[1])


class Links:
    """What a stranger on the wire finds out about the member's TLS keys."""

    def __init__(self, testnet: Testnet, bank: Bank, member: str, tls: Rotation) -> None:
        self._bank = bank
        self._member = member
        self._tls = tls
        layout = Layout(testnet.directory)
        nodes = layout.load().members
        self._address = next(item.listen for item in nodes if item.id == member)
        self._other = next(item.listen for item in nodes if item.id != member)
        self._pinned = [item.tls_key for item in load_network(layout.network_file).members]

    def up(self) -> bool:
        """Every node has a link with the member's, and that one votes."""
        for other in self._bank.others(self._member):
            with Client([self._bank.urls[other]]) as client:
                if not any(peer.id == self._member and peer.connected for peer in client.status().peers):
                    return False
        with Client([self._bank.urls[self._member]]) as client:
            return client.status().voting

    def shown_to(self, key: SigningKey) -> bytes | None:
        """The key that the member's node shows to who knows it by this one."""
        with self._dialled(self._address, self._tls.key, key) as secured:
            return certificate_key(secured.getpeercert(binary_form=True) or b"")

    def taken(self, key: SigningKey) -> bool:
        """Whether another node takes a link of who shows this key. A refusal comes with the first read."""
        with self._dialled(self._other, key, key) as secured:
            secured.settimeout(REFUSED_S)
            try:
                return secured.recv(1) != b""
            except TimeoutError:
                return True
            except OSError:
                return False

    @contextmanager
    def _dialled(self, address: str, shown: SigningKey, known_as: SigningKey) -> Iterator[ssl.SSLSocket]:
        host, _, port = address.rpartition(":")
        context = tls_context(shown, server=False, pinned=(*self._pinned, self._tls.key.public))
        name = server_name(known_as.public)
        with (
            socket.create_connection((host, int(port)), timeout=10.0) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            yield secured


def signs(block: BlockAnswer, index: int, key: SigningKey) -> bool:
    """Whether the certificate has a signature of this member, by this key."""
    of = block.certificate
    kind, digest = VoteKind[of.kind.upper()], bytes.fromhex(of.digest)
    message = vote_bytes(block.header.network, kind, of.view, of.height, digest)
    return verify(key.public, message, bytes.fromhex(of.signatures.get(str(index), "")))


def test_keys_rotate_under_load_and_a_restart_within_the_overlap_goes_well(
    testnet: Testnet, bank: Bank, capsys: pytest.CaptureFixture[str]
) -> None:
    says = Assembly(testnet, bank, capsys)
    # Not the payer, and not the primary: its restart costs a time-out, whatever its keys are.
    member, *_ = bank.others("bank-a", bank.primary())
    members, first = list(bank.urls), bank.height("bank-a")
    voters = bank.others(member)[:2]
    began = time.monotonic()
    with Load(bank) as load, bank.client() as client:
        voting, tls = (rotated(testnet, says, member, kind) for kind in ("voting", "tls"))
        own = rotated(testnet, says, "bank-a", "principal")
        links = Links(testnet, bank, member, tls)
        # Its node has the new ones at hand from its next start on.
        restarts = time.monotonic()
        testnet.run("stop", member)
        testnet.run("start", member)
        until(links.up)
        overlap_ms = max(OVERLAP_MS_MIN, round(RESTARTS * 1000 * (time.monotonic() - restarts)))
        number = says.proposed(member, "rotate_voting_key", member, "--voting-key", voting.key.public.hex())
        says.done(voters[0], "vote", number, "yes")
        assert not links.taken(tls.key)
        words = ("--tls-key", tls.key.public.hex(), "--overlap", f"{overlap_ms}ms")
        says.agreed("rotate_tls_key", member, *words, by=member, voters=voters)
        # From here on either of two keys pays.
        args = {"principal": "bank-a", "former": own.former.public.hex(), "key": own.key.public.hex()}
        named = [f"{name}={value}" for name, value in args.items()]
        says.done("bank-a", "tx", "submit", "membership.rotate_key", *named, f"overlap_ms={overlap_ms}")
        by_former, load.keys = load.signed[own.former.public], (own.former, own.key)
        # The new voting key is decided on while its node is down, and waits for that node's own word.
        testnet.run("stop", member)
        says.done(voters[1], "vote", number, "yes")
        assert says.found(number)["status"] == "waiting"
        decided_at = bank.height("bank-a")
        testnet.run("start", member)
        says.becomes(number, "effective")
        until(links.up)
        # Both TLS keys are good, whoever dials.
        assert [links.shown_to(key) for key in tls] == [key.public for key in tls]
        assert [links.taken(key) for key in tls] == [True, True]
        at_ms = client.status().head_time_ms
        row = client.query("membership.member", {"member": member}).value
        assert row["former_tls_key"] == tls.former.public.hex()
        assert at_ms < row["former_tls_until_ms"]
        lists = [json.loads(says.done(name, "keys", "list", "--json"))["keys"] for name in (member, "bank-a")]
        found = {bytes.fromhex(item["public_key"]): item for item in itertools.chain(*lists)}
        uses = [[found[key.public]["use"] for key in rotation] for rotation in (voting, tls, own)]
        assert uses == [["none", "in_force"], ["former", "in_force"], ["former", "in_force"]]
        for kind, rotation in (("voting", voting), ("tls", tls)):
            age_s = gauges(bank.urls[member])[f"hansa_{kind}_key_age_seconds"]
            made_ms = time.time() * 1000 - age_s * 1000
            nearest = min(rotation, key=lambda key: abs(found[key.public]["created_at_ms"] - made_ms))
            assert nearest is rotation.key, "the metric tells the age of another key"
        by_both = load.signed[own.former.public] - by_former, load.signed[own.key.public]
        assert min(by_both) > 0
        load.keys = (own.key,)
        [rotated_own] = client.query("membership.principal", {"principal": "bank-a"}).value["former"]
        over_ms = max(row["former_tls_until_ms"], rotated_own["until_ms"])
        until(lambda: client.status().head_time_ms >= over_ms)
        until(lambda: not links.taken(tls.former))
        until(links.up)
        assert [links.shown_to(key) for key in tls] == [tls.key.public] * 2
        paid = "settlement.transfer", "debtor=T-1", "creditor=T-2", "amount=1"
        former_file = str(key_file(Layout(testnet.directory), "bank-a"))
        says.refused("policy_unsatisfied", "bank-a", "tx", "submit", *paid, "--key", former_file)
        # The command line takes the key in force, whose file was made second.
        says.done("bank-a", "tx", "submit", *paid)
        wanted = load.paid + PAID
        until(lambda: load.paid >= wanted)
    seconds = time.monotonic() - began
    testnet.wait(agreed)
    assert {bank.balance("T-2", name) for name in members} == {load.paid + 1}
    blocks = blocks_from(bank.urls[member], first)
    assert len({block.certificate.view for block in blocks}) == 1, "somebody waited for a time-out"
    rotated_at = height_of_the_change(blocks)
    assert decided_at < rotated_at
    index = members.index(member)
    signed: Counter[str] = Counter()
    for block in blocks:
        signers = [int(place) for place in block.certificate.signatures]
        assert len(signers) >= 3, "less than a quorum"
        assert signers == sorted(set(signers)), "one member, one vote"
        assert set(signers) <= set(range(len(members)))
        good, other = (voting.former, voting.key) if block.height <= rotated_at else (voting.key, voting.former)
        assert signs(block, index, good) == (index in signers)
        assert not signs(block, index, other)
        signed["before" if good is voting.former else "after"] += index in signers
    assert min(signed["before"], signed["after"]) > 0
    with capsys.disabled():
        print(
            f"\n{seconds:.1f} s, overlaps of {overlap_ms / 1000:.1f} s; {len(blocks)} blocks, longest gap"
            f" {longest_gap_ms(blocks)} ms; {load.paid} payments, none lost, in the overlap {by_both[0]} by the"
            f" former key and {by_both[1]} by the new one; {member} signed {signed['before']} blocks with its"
            f" former voting key and {signed['after']} with the new one"
        )


def height_of_the_change(blocks: Sequence[BlockAnswer]) -> int:
    """The block whose header names another list of members; there is one alone, and it decides from the next on."""
    [height] = [
        later.height
        for earlier, later in itertools.pairwise(blocks)
        if later.header.members_hash != earlier.header.members_hash
    ]
    return height
