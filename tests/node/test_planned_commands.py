"""What `hansa maintenance` and `hansa brake` refuse before they ask any node, and how they tell what is on."""

import pytest

from node.cli.main import main
from node.client.answers import BrakeAnswer, RestAnswer
from node.diagnosis.notices import notices


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--at", "2026-11-23T22:00"), "names no time zone: write 2026-11-23T22:00Z for UTC"),
        (("--at", "tomorrow"), "is no time"),
        (("--at", "2026-11-23T22:00Z", "--in", "5m"), "not both"),
    ],
)
def test_a_time_that_can_be_read_in_two_ways_is_refused(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["maintenance", "book", *words, "--for", "1h", "--node", "http://127.0.0.1:1"]) == 2
    assert told in capsys.readouterr().err


def test_a_brake_without_a_reason_or_on_anything_else_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["brake", "ask", "account", "A"]) == 2
    assert "--reason" in capsys.readouterr().err
    assert main(["brake", "ask", "everything", "A", "--reason", "x"]) == 2


@pytest.mark.parametrize(
    "words",
    [("brake", "ask", "account", "A", "--reason", "x", "--for", "5"), ("maintenance", "book", "--for", "2")],
)
def test_a_time_without_a_unit_is_not_taken_for_seconds(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--node", "http://127.0.0.1:1"]) == 2
    assert "names no unit" in capsys.readouterr().err


def test_what_is_planned_and_stopped_is_told_in_sentences() -> None:
    until_ms = 1_700_000_000_000
    resting = [RestAnswer(member="bank-b", until_ms=until_ms, skipped=skipped) for skipped in (True, False)]
    stopped = [BrakeAnswer(scope="account", subject="ACC-1", until_ms=until_ms)]
    until = "until 2023-11-14 22:13:20 UTC"
    assert notices(resting, stopped) == (
        f"bank-b is in a maintenance window {until}: its turn as primary is skipped.",
        f"bank-b is in a maintenance window {until}: too many rest, so its turn is not skipped.",
        f"An emergency brake stops account ACC-1 {until}.",
    )
