"""What the replica is told once: who it is, and the network's parameters that consensus needs."""

import msgspec


class Config(msgspec.Struct, frozen=True):
    """Names and numbers of one replica. Times in milliseconds, the same for every member of a network.

    `member` None makes an observer: it follows, decides and catches up, and signs nothing.
    `base_timeout_ms` doubles with every failed view of a height up to `timeout_cap_ms`.
    `empty_block_interval_ms` 0 means: never an empty block.
    `instance` (16 bytes) was drawn by this process at its start; empty: nothing tells its processes apart [9.8].
    `passed_over_max` decided, non-full blocks without the oldest includable transaction accuse the primary.
    """

    network: str
    member: str | None
    rotation_heights: int = 10_000
    base_timeout_ms: int = 2_000
    timeout_cap_ms: int = 10_000
    status_interval_ms: int = 500
    empty_block_interval_ms: int = 60_000
    passed_over_max: int = 20
    instance: bytes = b""

    def timeout_ms(self, failed_views: int) -> int:
        """The time-out after so many failed views at one height."""
        return min(self.base_timeout_ms << min(max(failed_views, 0), 16), self.timeout_cap_ms)  # [6.4]
