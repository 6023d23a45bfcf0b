"""Repair asks every member that it can reach, and says whom it could not."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consensus.codec import encode
from node.config import NodeConfig
from node.errors import Unavailable
from node.keys import SigningKey
from node.ledger import CertifiedBlock
from node.repair import PeerSource, sources
from node.wire import Blocks, FetchBlocks
from tests.node.signed_ledger import KEYS, make_ledger, signed_network


class Links:
    """Links to three members, as node.peers.Peers has them: those in `late` come up once bank-b was asked."""

    block: CertifiedBlock
    holders: frozenset[str] = frozenset()
    early: tuple[str, ...] = ("bank-b",)
    late: tuple[str, ...] = ()
    asked: list[str]
    ranges: list[tuple[str, int, int]]
    alone = False
    """Whether every answer has one block, however many were asked for."""

    def __init__(self, **_: object) -> None:
        Links.asked, Links.ranges = [], []

    async def start(self) -> None:
        """All begin to connect."""

    async def close(self) -> None:
        """None is connected."""

    @property
    def connected(self) -> tuple[str, ...]:
        return (*self.early, *self.late) if self.asked else self.early

    def peers(self) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(id=name, last_error="refused") for name in ("bank-b", "bank-c", "bank-d"))

    async def request(self, peer: str, message: FetchBlocks, timeout_s: float) -> Blocks:
        self.asked.append(peer)
        if peer not in self.holders:
            raise Unavailable("peer_gone", f"{peer} has pruned it")
        count = 1 if self.alone else message.last - message.first + 1
        self.ranges.append((peer, message.first, message.last))
        return Blocks(message.request, (encode(self.block),) * count, 3, 1)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PeerSource]:
    ledger = make_ledger(tmp_path / "data")
    monkeypatch.setattr(Links, "block", ledger.store.block(2), raising=False)
    ledger.close()
    monkeypatch.setattr(sources, "Peers", Links)
    monkeypatch.setattr(sources, "CONNECT_TIMEOUT_S", 0.2)
    node = NodeConfig("bank-a", tmp_path, tmp_path, tmp_path / "network.toml", "127.0.0.1:0", "127.0.0.1:0")

    def open_tls_key() -> SigningKey:
        return KEYS["bank-a"]

    source = PeerSource(node, signed_network(), open_tls_key)
    yield source
    source.close()


def test_a_member_that_connects_later_is_asked_when_the_first_has_not_the_block(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "CONNECT_TIMEOUT_S", 60.0)
    monkeypatch.setattr(Links, "holders", frozenset({"bank-d"}))
    monkeypatch.setattr(Links, "late", ("bank-d",))
    assert next(iter(source.blocks(2))) == Links.block
    assert Links.asked == ["bank-b", "bank-d"]


def test_nobody_else_is_asked_when_the_first_answer_is_right(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Links, "early", ("bank-b", "bank-c"))
    monkeypatch.setattr(Links, "holders", frozenset({"bank-b", "bank-c"}))
    assert next(iter(source.blocks(2))) == Links.block
    assert Links.asked == ["bank-b"]


def test_who_was_asked_and_who_was_not_reached_is_named(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Links, "late", ("bank-c",))
    monkeypatch.setattr(Links, "holders", frozenset({"bank-c"}))
    assert list(source.blocks(2)) == [Links.block]
    told = source.account()
    assert "bank-b was asked: it gave none" in told
    assert "bank-c was asked: it had none that is right" in told
    assert "bank-d was not reached (refused)" in told


def test_that_no_member_was_reached_is_an_error_of_its_own(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Links, "early", ())
    with pytest.raises(Unavailable, match="no member could be reached"):
        list(source.blocks(2))


def test_blocks_that_are_missing_one_after_the_other_are_asked_for_in_ranges(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Links, "holders", frozenset({"bank-b"}))
    for height in range(10, 110):
        assert next(iter(source.blocks(height))) == Links.block
    assert Links.ranges == [
        ("bank-b", 10, 10),
        ("bank-b", 11, 12),
        ("bank-b", 13, 20),
        ("bank-b", 21, 84),
        ("bank-b", 85, 148),
    ]
    # Elsewhere a single one may be missing.
    assert next(iter(source.blocks(500))) == Links.block
    assert Links.ranges[-1] == ("bank-b", 500, 500)


def test_block_1_is_asked_for_when_it_is_the_first_that_is_missing(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for the one that follows block 0, of none that had been asked for: peers end such a link."""
    monkeypatch.setattr(Links, "holders", frozenset({"bank-b"}))
    for height in (1, 2):
        assert next(iter(source.blocks(height))) == Links.block
    assert Links.ranges == [("bank-b", 1, 1), ("bank-b", 2, 3)]


def test_what_came_along_is_bounded_and_a_shorter_answer_is_one(
    source: PeerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Links, "early", ("bank-b", "bank-c"))
    monkeypatch.setattr(Links, "holders", frozenset({"bank-b", "bank-c"}))
    monkeypatch.setattr(sources, "AHEAD_BYTES_MAX", 0)
    for height in (10, 11, 12):
        # Both are asked, as when the first one lies.
        assert list(source.blocks(height)) == [Links.block] * 2
    assert set(source._ahead) == {"bank-c"}
    monkeypatch.setattr(Links, "alone", True)
    for height in range(13, 40):
        assert next(iter(source.blocks(height))) == Links.block
