"""Whole lists of what a contract answers page by page."""

from typing import Any, Final

from node.client import Client
from node.errors import Unavailable

PAGE: Final = 100


def numbered_rows(client: Client, query: str) -> list[dict[str, Any]]:
    """Return all rows of a query that gives those after a number: each page goes on after the last one's."""
    rows: list[dict[str, Any]] = []
    while True:
        after = rows[-1]["number"] if rows else 0
        page = client.query(query, {"after": after, "limit": PAGE}).value
        rows.extend(page)
        if len(page) < PAGE:
            return rows


def proposal_view(client: Client, number: int) -> dict[str, Any]:
    """Return a proposal with all of its history, of which one answer holds the beginning.

    Raise Unavailable (`unexpected_answer`) where the node does not give the rest: what is missing is not left out.
    """
    view: dict[str, Any] = client.query("governance.proposal", {"proposal": number}).value
    history = view["history"]
    while len(history) < view["history_lines"]:
        args = {"proposal": number, "after": len(history), "limit": PAGE}
        page = client.query("governance.history_page", args).value
        if not page:
            told = f"{len(history)} of the {view['history_lines']} lines of proposal {number}"
            raise Unavailable("unexpected_answer", f"the node gives {told}")
        history.extend(page)
    return view
