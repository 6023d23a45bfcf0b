"""The report of a recovery exercise says what was measured, and what was not as it should be."""

import msgspec

from scripts.localnet.drill import DrillReport, markdown
from scripts.localnet.exercise import Recovery
from scripts.localnet.steady import SteadyReport

RESTORED = Recovery("restore", "bank-a", 120, 110, 110, 1.5, 4.0, 5.0, 6.25, 0, 0, 10, 95, True)
JOINED = Recovery("join", "bank-b", 130, 0, 0, None, 3.0, 8.0, 9.75, 0, 0, 130, 900, True)
REPORT = DrillReport(
    ok=True,
    machine="m",
    nodes=4,
    rate_per_s=50.0,
    bound_s=120.0,
    seconds=60.0,
    backups=[],
    recoveries=[RESTORED, JOINED],
    load=SteadyReport(3000, 3000, 0, 60.0, 5.5),
    verified=True,
    problems=[],
)


def test_recovery_time_and_loss_stand_beside_one_another() -> None:
    text = markdown(REPORT)
    assert "Passed: 4 nodes" in text
    assert "| **votes again: recovery time, RTO (s)** | 6.25 | 9.75 |" in text
    assert "| **transactions lost, RPO** | 0 | 0 |" in text
    assert "| transactions that the backup alone lacks | 95 | 900 |" in text
    assert "3,000 transactions sent in 60 s, 3,000 final, 0 lost" in text


def test_a_failed_exercise_says_what_failed() -> None:
    failed = msgspec.structs.replace(REPORT, ok=False, problems=["bank-a is not back"], verified=False, load=None)
    text = markdown(failed)
    assert "FAILED" in text
    assert "- **bank-a is not back**" in text
    assert "not judged" in text


def test_a_ledger_that_lacks_blocks_or_differs_is_no_recovery() -> None:
    assert RESTORED.ok
    assert not msgspec.structs.replace(RESTORED, lost_blocks=1).ok
    assert not msgspec.structs.replace(RESTORED, roots_agree=False).ok
