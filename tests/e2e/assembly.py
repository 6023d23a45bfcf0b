"""The members' administrators at their command lines, on a network that runs."""

import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from node.cli.main import main
from node.client import Client
from node.errors import HansaError
from tests.e2e.conftest import Bank, Testnet
from tests.e2e.load import WAIT_S, until


class Assembly:
    """The members' administrators at their command lines."""

    def __init__(self, testnet: Testnet, bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = testnet.directory
        self.urls = list(bank.urls.values())
        """Of the four founders' nodes."""
        self._capsys = capsys
        self._proposals = itertools.count(1)
        self.effective: set[str] = set()

    def say(self, member: str, *words: str) -> tuple[int, str]:
        """The exit code of `hansa WORDS --dir …`, and all that it printed.

        Each node applies a block in its own time: what one administrator did may be final and another's node not
        know it yet, so this waits for the founders' nodes that run to be as far as the first of them is.
        """
        first = max(self._heights())
        until(lambda: min(self._heights()) >= first)
        self._capsys.readouterr()
        code = main([*words, "--dir", str(self.directory / member)])
        printed = self._capsys.readouterr()
        return code, printed.out + printed.err

    def done(self, member: str, *words: str) -> str:
        """What the command printed, which went well."""
        code, printed = self.say(member, *words)
        assert code == 0, printed
        return printed

    def refused(self, refusal: str, member: str, *words: str) -> None:
        """The command exits with 1 and names the refusal."""
        code, printed = self.say(member, *words)
        assert (code, refusal in printed) == (1, True), (refusal, words, printed)

    def proposed(self, member: str, *words: str) -> str:
        """The number of a new proposal, which is voted on."""
        number = str(next(self._proposals))
        assert f"Proposal {number}." in self.done(member, "propose", *words)
        return number

    def found(self, number: str) -> dict[str, Any]:
        """The proposal as the ledger has it."""
        with Client(self.urls, patience_s=WAIT_S) as client:
            proposal: dict[str, Any] = client.query("governance.proposal", {"proposal": int(number)}).value[
                "proposal"
            ]
            return proposal

    def all_vote(self, *members: str) -> None:
        """Every founder's node that runs has heard of all of these members that they vote."""

        def hold(url: str) -> bool:
            with Client([url], patience_s=WAIT_S) as client:
                return {item.id for item in client.why().members if item.votes} >= set(members)

        until(lambda: all(hold(url) for url in self.urls))

    def becomes(self, number: str, status: str) -> None:
        """The proposal comes to this status, without anybody doing anything."""
        until(lambda: self.found(number)["status"] == status)
        if status == "effective":
            self.effective.add(self.found(number)["kind"])

    def agreed(self, *words: str, by: str, voters: Sequence[str]) -> str:
        """A proposal that takes effect by the votes of its proposer and of these."""
        number = self.proposed(by, *words)
        for voter in voters[:-1]:
            assert f"Proposal {number} is open" in self.done(voter, "vote", number, "yes")
        assert f"Proposal {number} is open" not in self.done(voters[-1], "vote", number, "yes")
        self.becomes(number, "effective")
        return number

    def _heights(self) -> list[int]:
        """Of the founders' nodes that run."""
        found = []
        for url in self.urls:
            with Client([url], patience_s=0.0) as client, suppress(HansaError):
                found.append(client.status().height)
        return found
