"""What commands show on a terminal of 80 columns: words that people copy and read stay whole."""

import io

import pytest
import structlog

from node.cli.main import main
from node.cli.output import Output, message

KEYS = ("ab" * 32, "cd" * 32)


class Terminal(io.StringIO):
    """A terminal, by its own word."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Standard output, 80 columns wide. No fixture: pytest replaces standard output before the test."""
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("TERM", "dumb")
    return screen


def test_neither_keys_nor_names_nor_headers_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`hansa keys list` cut each public key into eight lines of nine signs."""
    headers = ["kind", "of", "public key", "encrypted", "in force", "file"]
    rows = [
        ["principal", f"insurer-{place}", key, True, "yes", "keys/principal.key"] for place, key in enumerate(KEYS)
    ]
    screen = terminal(monkeypatch)
    Output(False).table(headers, rows)
    shown = screen.getvalue()
    for word in (*KEYS, "insurer-0", "insurer-1", "encrypted", "keys/principal.key", "principal"):
        assert word in shown
    assert len(shown.split("keys/principal.key")) == 3


def test_a_key_among_facts_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    Output(False).facts([("voting key, as the others know it", KEYS[0])])
    assert KEYS[0] in screen.getvalue()


def test_sentences_are_wrapped_between_words_within_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    Output(False).table(["name", "what it does"], [["membership", "who takes part in the network and how " * 5]])
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert any(line.strip().startswith("membership") for line in lines)
    assert " ".join(line.strip().removeprefix("membership") for line in lines[3:]).split().count("network") == 5


def test_an_endless_word_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    Output(False).table(["arguments"], [["x" * 500]])
    assert max(len(line.rstrip()) for line in screen.getvalue().splitlines()) <= 80


def test_what_members_write_on_the_ledger_moves_no_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason of a brake could overwrite the line above it, which says what is stopped."""
    reason = "case 4711\x1b[3A\rstops   account OTHER\x9b2J\u202e"
    screen = terminal(monkeypatch)
    output = Output(False)
    output.table(["brake", "reason"], [[1, reason]])
    output.facts([("stops", "account ACC-1"), ("reason", reason), ("events", [reason])])
    output.text(f"Window 1: {reason}")
    message(f"hansa: {reason}")
    shown = screen.getvalue() + capsys.readouterr().err
    assert shown.count("case 4711") == 5
    assert all(line.isprintable() for line in shown.split("\n"))


def test_a_log_outlives_the_standard_error_of_the_command_that_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node in the same process failed as it stopped: its log went to the stream of a command that had ended."""
    before, after = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", before)
    assert main(["docs", "causes"]) == 0
    log = structlog.get_logger("part").bind()
    before.close()
    monkeypatch.setattr("sys.stderr", after)
    log.info("stopped")
    assert "stopped" in after.getvalue()
