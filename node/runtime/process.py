"""The process around a node: its directory, its keys, its log, its event loop."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, TextIO, cast

import structlog
import uvloop

from node.config import NodeConfig, load_node
from node.keys import KeyKind, SigningKey, find_passphrase, key_made_ms, read_key_file
from node.recovery import load_trusted
from node.runtime.heap import give_back_large
from node.runtime.node import Node
from node.runtime.surroundings import this_machine

NODE_FILE = "node.toml"
FURTHER = "[0-9a-f]" * 16
"""How the files of keys are told apart that came later: by the first digits of the public key."""
STANDARD_ERROR: Final = 2
SWITCH_INTERVAL_S = 0.001
"""How long a busy thread may keep the event loop from running: votes come before executions."""

GC_THRESHOLDS = (500_000, 20, 200)
"""Almost everything here dies by its reference count; walks for the rare cycle are rare, and full ones very rare:
a full walk over a loaded node's memory holds up votes for a good part of a second.

The first number is more than what a full mempool and the largest block are made of, some fifteen objects for each
transaction. With less, every few thousand transactions that come and go start a walk over those that wait, which
finds nothing and holds up everything for 50 ms.
"""


def run(directory: Path, passphrase: Callable[[], str]) -> int:
    """Run the node of `directory` until SIGTERM, SIGINT or a failure; return the exit code.

    `passphrase` is asked when neither environment nor node.toml has one. Raise ConfigError (configuration, keys,
    ports) or StoreError (disk) when the node cannot start.
    """
    config = load_node(directory / NODE_FILE)
    network = load_trusted(config)
    _set_up_log(config)
    secret = find_passphrase(os.environ, config.passphrase_file, passphrase)
    made_ms: dict[bytes, int] = {}

    def opened(path: Path, kind: KeyKind) -> SigningKey:
        info, key = read_key_file(path, secret, kind=kind, id=config.member)
        made_ms[key.public] = key_made_ms(path, info)
        return key

    voting_key = opened(config.keys_dir / "voting.key", "voting")
    tls_key = opened(config.keys_dir / "tls.key", "tls")
    # To these the member rotated since, or will (docs/governance.md); the ledger says which one signs.
    further = [opened(path, "voting") for path in sorted(config.keys_dir.glob(f"voting-{FURTHER}.key"))]
    further_tls = [opened(path, "tls") for path in sorted(config.keys_dir.glob(f"tls-{FURTHER}.key"))]
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    give_back_large()

    async def main() -> int:
        while True:
            machine = this_machine(config, network, voting_key, tls_key, further, further_tls)
            node = Node(config, network, dataclasses.replace(machine, keys_made_ms=made_ms))
            for name in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(name, node.stop)
            code = await node.run(_settle)
            # A snapshot that was fetched is taken over by another node: in this process, whose keys are open.
            if code or not node.begins_anew:
                return code

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _settle() -> None:
    """What lives now lives long: the collector need not walk it again and again."""
    # A node that ran before in this process is garbage now, and must not be kept for ever.
    gc.unfreeze()
    gc.collect()
    gc.freeze()


class _LogStream:
    """Standard error without a buffer. A line that finds no room (the log's disk is full) is lost, and nothing
    else.

    Why not sys.stderr: it would raise in whoever logs, keep the line, fail again at the end of the process, and
    turn the exit code into 120.
    """

    def write(self, text: str) -> None:
        """As much of `text` is written as there is room for."""
        with contextlib.suppress(OSError):
            os.write(STANDARD_ERROR, text.encode("utf-8", "backslashreplace"))

    def flush(self) -> None:
        """Nothing is kept back."""


def _set_up_log(config: NodeConfig) -> None:
    """One JSON document a line on standard error: whoever runs the process keeps it."""
    level = getattr(logging, config.log_level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, _LogStream())),
        cache_logger_on_first_use=True,
    )
