"""Saving a node's diagnostics bundle, for `hansa why --bundle FILE`."""

import os
from pathlib import Path

from node.cli.output import message
from node.client import Client
from node.errors import ConfigError


def save_bundle(client: Client, file: Path) -> None:
    """The node's bundle lies in `file`, which is new and readable by its owner alone; a line on stderr says so.

    Raise ConfigError (`bundle_not_written`) where the file exists or cannot be written.
    """
    if file.exists():
        # Said before the node is asked to make one.
        raise ConfigError("bundle_not_written", f"{file}: exists already")
    data = client.diagnostics()
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as opened:
            opened.write(data)
    except OSError as error:
        raise ConfigError("bundle_not_written", f"{file}: {error.strerror or error}") from error
    message(f"hansa: wrote {file} ({len(data)} bytes): no keys, no transactions, no arguments are in it")
