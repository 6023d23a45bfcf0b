"""Whole nodes under faults, in many seeds: every rule holds and every run recovers."""

import os

import pytest

from tests.conftest import FAST
from tests.simulation.nodes.runner import replay_line, run_governed_seed, run_seed, unexercised
from tests.simulation.runner import report_lines, run_seeds

FEW_SEEDS = 2 if FAST else 4
SLOW_SEEDS = 150
GOVERNED_SEEDS = 25
EXPECTED_RULES = (
    "a node ends only when told or with its disk",
    "a promise is durable",
    "a request takes effect once",
    "agreement",
    "certified",
    "chain",
    "durable before sent",
    "equal state roots",
    "heights only grow by one",
    "money is neither made nor lost",
    "no accepted transaction is lost",
    "no block contains what expired",
    "one fate everywhere",
    "one version a height",
    "one vote per slot",
    "progress after healing",
    "start view",
    "who is not ready says why",
    "why always has an answer",
)


def sweep(first: int, seeds: int) -> None:
    """Every rule holds in all of the seeds."""
    report = run_seeds(first, seeds, jobs=min(2, os.cpu_count() or 1), run=run_seed)
    text = "\n".join(report_lines(report))
    print(text)
    assert not report.failed, text
    assert not unexercised(report)
    if seeds == SLOW_SEEDS:
        assert [rule for rule in EXPECTED_RULES if not report.rules[rule]] == []


def test_every_rule_holds_in_a_few_seeds() -> None:
    sweep(0, FEW_SEEDS)


@pytest.mark.slow
def test_every_rule_holds_in_many_seeds() -> None:
    sweep(1_000, SLOW_SEEDS)


def test_members_change_their_list_in_a_few_seeds() -> None:
    governed_sweep(2, FEW_SEEDS // 2)


@pytest.mark.slow
def test_members_change_their_list_in_many_seeds() -> None:
    governed_sweep(2_000, GOVERNED_SEEDS)


def governed_sweep(first: int, seeds: int) -> None:
    """Every rule holds in all of the seeds, and the list changed at least once in each."""
    report = run_seeds(first, seeds, jobs=min(2, os.cpu_count() or 1), run=run_governed_seed)
    assert not report.failed, [replay_line(failure, governed=True) for failure in report.failed]
    assert report.reached["the list changed"] >= seeds
    if seeds == GOVERNED_SEEDS:
        for kind in ("suspend_member", "resume_member", "rotate_voting_key"):
            assert report.faults[f"propose {kind}"]
        assert report.reached["a contract changed its version"] > GOVERNED_SEEDS // 4
        for situation in ("the list changed in a later view", "the next primary left with the list"):
            assert report.reached[situation]
