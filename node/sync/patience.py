"""How long a download may go on: judged by its rate, with no regard to how it is cut into answers.

Invariant: a download that has brought B bytes ends at the latest `most_s` + B / `bytes_per_s_min` after it began or
was renewed. Every byte buys the time that it would take at the lowest rate that is worth waiting for, and at most
`most_s` is ever in hand: what came quickly at first does not pay for trickling later.
"""


class Patience:
    """The time in hand. `now_s` is any one steady clock's."""

    def __init__(self, now_s: float, most_s: float, bytes_per_s_min: float) -> None:
        """`most_s` is in hand."""
        self._most_s = most_s
        self._bytes_per_s_min = bytes_per_s_min
        self._due_s = now_s + most_s

    def came(self, size_bytes: int, now_s: float) -> None:
        """So many bytes have come and bought their time."""
        self._due_s = min(self._due_s + size_bytes / self._bytes_per_s_min, now_s + self._most_s)

    def renew(self, now_s: float) -> None:
        """`most_s` is in hand again."""
        self._due_s = now_s + self._most_s

    def is_over(self, now_s: float) -> bool:
        """Whether all time is spent."""
        return now_s >= self._due_s
