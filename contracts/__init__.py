"""The business services of the ledger: pure functions over declared state.

Importing this package makes its service modules load judged and metered (see loader.py) and names the contracts
that this release ships. Which of them execute, the ledger says (lifecycle.py).
"""

from contracts.loader import install

install()

from contracts.approvals import Approvals  # noqa: E402 - the finder comes first
from contracts.brake import Brake  # noqa: E402
from contracts.claims import Claims  # noqa: E402
from contracts.governance import Governance  # noqa: E402
from contracts.lifecycle import Lifecycle  # noqa: E402
from contracts.maintenance import Maintenance  # noqa: E402
from contracts.membership import Membership  # noqa: E402
from contracts.sdk import Contract  # noqa: E402
from contracts.settlement import Settlement  # noqa: E402

CONTRACTS: tuple[type[Contract], ...] = (
    Membership,
    Lifecycle,
    Settlement,
    Claims,
    Governance,
    Maintenance,
    Brake,
    Approvals,
)
"""What a network begins with unless its definition says otherwise, in the order in which genesis runs. It is fixed:
a contract that joined this list later would make another genesis of a network that runs."""
FURTHER: tuple[type[Contract], ...] = ()
"""What is shipped besides, several versions of one contract too: it executes once the members have activated it."""

__all__ = ["CONTRACTS", "FURTHER"]
