"""Real data as phases of work, and what has to be true of the ledger when they are done."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from scripts.localnet.claims_book import ClaimsBook
from scripts.localnet.datasets import DataError, read_claims, read_openings, read_transfers
from scripts.localnet.layout import ROOT
from scripts.localnet.plan import ExpectedCall, Group, Phase, bundles
from scripts.localnet.transfers import AccountBook, Transfers

SAMPLE_PAYMENTS = ROOT / "data" / "payments_amlsim" / "transactions.csv"
SAMPLE_CLAIMS = ROOT / "data" / "claims_australia" / "claims.csv"
SAMPLE_PREFIX = "C"
SINGLE_CENTS = 1


class Replay(msgspec.Struct, frozen=True):
    """Work in phases; `balances` and `payouts` are what a plain loop over the data expects afterwards (cents)."""

    name: str
    transfers: int
    claims: int
    phases: tuple[Phase, ...]
    balances: dict[str, int]
    payouts: dict[str, int]


class Cast(msgspec.Struct, frozen=True):
    """Who plays which part in a test network."""

    members: tuple[str, ...]

    @property
    def insurers(self) -> tuple[str, str]:
        """The last two of the first four; in a network of one, the same one twice."""
        first = self.members[:4]
        return first[-2:][0], first[-1]

    @property
    def issuers(self) -> dict[str, str]:
        """Currency -> the member that issues it."""
        return {"USD": self.members[0], "AUD": self.members[1 % len(self.members)]}

    @property
    def staff(self) -> tuple[str, ...]:
        """The principals beside the members' own: the insurers' claims departments."""
        roots = dict.fromkeys(self.insurers)
        return tuple(f"{root}/{role}" for root in roots for role in ("adjuster", "approver"))


def data_name(payments: Path, claims: Path) -> tuple[str, str]:
    """The name of the load of these files and the prefix of its accounts; raise DataError.

    The sample's accounts are `C-…`. Other files' are named after the files' content and so meet nobody else's.
    """
    if payments == SAMPLE_PAYMENTS and claims == SAMPLE_CLAIMS:
        return "sample", SAMPLE_PREFIX
    digest = hashlib.sha256()
    for path in (payments, claims):
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
    tag = digest.hexdigest()[:6]
    return f"replay-{tag}", f"R{tag}"


def make_replay(payments: Path, claims: Path, cast: Cast, transfers_max: int | None, singles: int) -> Replay:
    """Both files as work: bundles, and besides `singles` transactions of one call each; raise DataError.

    `transfers_max` shortens both files in proportion. Opening balances come from `nodes.csv` beside the payments,
    where there is one.
    """
    name, prefix = data_name(payments, claims)
    rows, claim_rows = read_transfers(payments), read_claims(claims)
    if transfers_max is not None and transfers_max < len(rows):
        claim_rows = claim_rows[: len(claim_rows) * transfers_max // len(rows)]
        rows = rows[:transfers_max]
    nodes_file = payments.parent / "nodes.csv"
    openings = read_openings(nodes_file) if nodes_file.exists() else {}
    transfers = Transfers(rows, openings, cast.members, prefix)
    book = transfers.expected()
    claims_book = ClaimsBook(claim_rows, cast.insurers, cast.members, prefix)
    phases = _phases(name, transfers, book, claims_book, cast.issuers)
    balances = {account: final for account, (_, _, final) in book.accounts.items()}
    if singles:
        there, back = _singles(book, balances, singles)
        phases.append(Phase("single transfers", bundles(there, f"{name}/7", size=1)))
        phases.append(Phase("and back again", bundles(back, f"{name}/8", size=1)))
    return Replay(name, len(rows), len(claim_rows), tuple(phases), balances, claims_book.expected_payouts())


def _phases(
    name: str, transfers: Transfers, book: AccountBook, claims: ClaimsBook, issuers: dict[str, str]
) -> list[Phase]:
    fundings = [*transfers.fundings(book, issuers["USD"]), *claims.fundings(issuers["AUD"])]
    work = (
        ("accounts and products", [*transfers.openings(book), *claims.openings()]),
        ("money and policies", [*fundings, *claims.policies()]),
        ("transfers and notices", [*transfers.payments(), *claims.notices()]),
        ("assessments", claims.assessments()),
        ("decisions", claims.decisions()),
        ("payouts", claims.payouts()),
    )
    return [
        Phase(what, bundles(groups, f"{name}/{place}")) for place, (what, groups) in enumerate(work, 1) if groups
    ]


def _singles(book: AccountBook, balances: dict[str, int], count: int) -> tuple[list[Group], list[Group]]:
    """Some `count` transfers of one cent, half of them there and half back: the balances end as they were.

    They are spread over the accounts that end with at least `count` cents, so that none can be overdrawn.
    """
    accounts = [account for account, balance in balances.items() if balance >= count]
    if len(accounts) < 2:
        raise DataError(f"no two accounts end with {count} cents: ask for fewer single transfers")
    there, back = [], []
    for number in range(count // 2):
        left, right = accounts[number % len(accounts)], accounts[(number + 1) % len(accounts)]
        there.append(_single(book, left, right, number))
        back.append(_single(book, right, left, number))
    return there, back


def _single(book: AccountBook, debtor: str, creditor: str, number: int) -> Group:
    args = {"debtor": debtor, "creditor": creditor, "amount": SINGLE_CENTS, "reference": f"single {number}"}
    return Group(book.accounts[debtor][0], (ExpectedCall("settlement", "transfer", args),))


def senders(phases: Sequence[Phase]) -> list[str]:
    """The principals whose keys the work needs."""
    return sorted({bundle.sender for phase in phases for bundle in phase.bundles})
