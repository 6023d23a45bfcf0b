"""The one question before something is signed for good."""

import sys

import click

from node.errors import ConfigError


def require_yes(question: str) -> None:
    """Return when the person at the terminal answers yes; raise ConfigError (`not_confirmed`) otherwise."""
    if not sys.stdin.isatty():
        raise ConfigError("not_confirmed", "there is no terminal to ask at")
    if not click.confirm(question, err=True):
        raise ConfigError("not_confirmed", "it was answered with no")
