"""The command `hansa`: what an operator types. Its exit codes say who must act (DESIGN §8)."""

import os
import sys
import traceback
from collections.abc import Sequence

import click

from node.cli.approving import approvals
from node.cli.archive import archive
from node.cli.backing_up import backup, restore
from node.cli.brake import brake
from node.cli.carrying_keys import keys_export, keys_import
from node.cli.documents import docs
from node.cli.governing import proposals, propose, vote
from node.cli.joining import invite
from node.cli.maintenance import maintenance
from node.cli.output import OutputFailed, checked_stdout, log_to_stderr, message, show_failure
from node.cli.proving import prove
from node.cli.reading import block, contracts, events, members, query, status, why
from node.cli.recovering import recovery
from node.cli.rehearsing import rehearse
from node.cli.repairing import repair
from node.cli.setup import init, keys, run
from node.cli.signing import build, sign
from node.cli.submitting import tx
from node.cli.syncing import sync
from node.cli.verifying import verify
from node.errors import ConfigError, HansaError, StoreError

INTERRUPTED = 130
WRONG_USE = frozenset({"invalid_arguments", "unknown_contract", "unknown_method", "malformed_request"})
"""Codes of a command line that no ledger could say yes to, whether this program noticed it or the node did."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hansa", message="hansa %(version)s")
@click.option("--debug", is_flag=True, help="Show the trace of an unexpected failure.")
def cli(debug: bool) -> None:
    """Run a node of a Hansa network, and use one: submit, query, watch.

    Exit codes: 0 done, 1 the ledger said no, 2 wrong use or configuration, 3 disk or data, 4 no node reachable,
    5 accepted and not final in time, 70 a bug.
    """


COMMANDS = (
    init,
    keys,
    run,
    status,
    sync,
    why,
    verify,
    repair,
    recovery,
    backup,
    restore,
    archive,
    members,
    invite,
    propose,
    vote,
    proposals,
    maintenance,
    brake,
    approvals,
    contracts,
    rehearse,
    tx,
    block,
    query,
    events,
    prove,
    docs,
)

for command in COMMANDS:
    cli.add_command(command)
for command in (build, sign):
    tx.add_command(command)
for command in (keys_export, keys_import):
    keys.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every failure is one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    log_to_stderr()
    try:
        with checked_stdout():
            code = _run(given)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # The reader of a pipe has enough; nothing more can be said on it.
        _discard_output()
        return 0
    except OutputFailed as error:
        _discard_output()
        show_failure(StoreError("output_not_written", f"cannot write output: {error.strerror or error}"), False)
        return StoreError.exit_code


def _run(given: list[str]) -> int:
    as_json = "--json" in given
    try:
        result = cli.main(args=given, prog_name="hansa", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except HansaError as error:
        show_failure(error, as_json)
        return ConfigError.exit_code if error.code in WRONG_USE else error.exit_code
    except click.ClickException as error:
        # The whole path: there is a `tx` of its own and one of `prove`.
        where = f" ({error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
        show_failure(ConfigError("invalid_usage", error.format_message().rstrip(".") + where), as_json)
        return ConfigError.exit_code
    except (KeyboardInterrupt, click.Abort):
        message("hansa: interrupted")
        return INTERRUPTED
    except (BrokenPipeError, OutputFailed):
        raise
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        text = f"{type(error).__name__}: {error}"
        show_failure(HansaError("internal_error", f"{text} (hansa --debug … shows where)"), as_json)
        return HansaError.exit_code


def _discard_output() -> None:
    """What is left to print goes nowhere: the interpreter would try it again at its end, and fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
