"""The business services of the ledger: pure functions over declared state.

Importing this package makes its service modules load judged and metered (see loader.py) and names the active
contracts, in the order in which their genesis runs.
"""

from contracts.loader import install

install()

from contracts.approvals import Approvals  # noqa: E402 - the finder comes first
from contracts.brake import Brake  # noqa: E402
from contracts.claims import Claims  # noqa: E402
from contracts.governance import Governance  # noqa: E402
from contracts.maintenance import Maintenance  # noqa: E402
from contracts.membership import Membership  # noqa: E402
from contracts.settlement import Settlement  # noqa: E402

CONTRACTS = (Membership, Settlement, Claims, Governance, Maintenance, Brake, Approvals)

__all__ = ["CONTRACTS"]
