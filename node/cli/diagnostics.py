"""Saving a node's diagnostics bundle, for `hansa why --bundle FILE`."""

from pathlib import Path

from node.cli.files import require_new, write_new
from node.cli.output import message
from node.client import Client


def save_bundle(client: Client, file: Path) -> None:
    """The node's bundle lies in `file`, which is new and readable by its owner alone; a line on stderr says so.

    Raise ConfigError (`bundle_not_written`) where the file exists or cannot be written.
    """
    require_new(file, "bundle_not_written")
    data = client.diagnostics()
    write_new(file, data, "bundle_not_written")
    message(f"hansa: wrote {file} ({len(data)} bytes): no keys, no transactions, no arguments are in it")
