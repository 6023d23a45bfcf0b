"""The document of `scripts/bench`: medians, shares of the limit, ratios to an earlier one; a whole small run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from rich.console import Console

from scripts.localnet import bench, document, memory_bench, plots
from scripts.localnet.document import Case, case_of, ratios, share
from scripts.localnet.figures import Percentiles, Spread
from scripts.localnet.layout import API_PORT_OFFSET, ROOT, TestnetError
from scripts.localnet.limits import single_call_limit
from scripts.localnet.load_cases import GROUPS, LOAD_CASES
from scripts.localnet.measuring import Run, least_disturbed
from scripts.localnet.node_usage import Look, NodeLook, machine_time, spent
from scripts.localnet.numbers import Number, Whole
from scripts.localnet.open_loop import LoadReport
from scripts.localnet.snapshot_load import Making, Sample, latencies_within, spans_of

RUN_TIMEOUT_S = 120


def _look(at_s: float, *totals: int, stolen: int = 0) -> Look:
    nodes = tuple(
        NodeLook(
            f"n{index}",
            at_s,
            total / 100,
            90.0,
            100.0 + total,
            total,
            total,
            total * 1000,
            total,
            total,
            total // 10,
            3,
        )
        for index, total in enumerate(totals)
    )
    return Look(nodes, machine_ticks=round(200 * at_s), stolen_ticks=stolen)


def _run(final_per_s: float, p99: float) -> Run:
    latency = Percentiles(5.0, 6.0, p99, p99)
    found = LoadReport(100.0, 200, 190, {"full": 10}, 0, 0, 2.0, final_per_s, final_per_s, latency, 0.1, 10)
    return Run(found, spent(_look(0.0, 0, 0), _look(2.0, 100, 50)), 310)


def _case(final_per_s: float = 100.0) -> Case:
    peaks = [spent(_look(0.0, 0), _look(1.0, total, stolen=50)) for total in (300, 200, 250)]
    return case_of("single", 4, 1_000.0, peaks, [_run(final_per_s, 9.0), _run(90.0, 7.0), _run(110.0, 8.0)])


def test_a_case_holds_medians_and_their_spread() -> None:
    case = _case()
    assert case.final_per_s_spread == Spread(100.0, 90.0, 110.0)
    assert case.latency_ms == Percentiles(5.0, 6.0, 8.0, 8.0)
    assert (case.peak_per_s, case.peak_share_of_limit, case.share_of_limit) == (
        Spread(250.0, 200.0, 300.0),
        0.25,
        0.1,
    )
    assert case.refused == {"full": 30}
    assert case.stolen == Spread(0.125, 0.0, 0.25)


async def test_a_run_that_the_host_disturbed_is_done_again() -> None:
    async def measured(shares: list[float], times: int) -> tuple[float, list[float]]:
        async def run() -> float:
            return shares.pop(0)

        return await least_disturbed(run, run, lambda share: share, times), shares

    assert await measured([0.4, 0.2, 0.01, 0.0], 3) == (0.01, [0.0])
    assert await measured([0.4, 0.2, 0.3, 0.0], 2) == (0.2, [0.0])
    assert await measured([0.4, 0.0], 0) == (0.4, [0.0])
    ticks, stolen_ticks = machine_time()
    assert 0 <= stolen_ticks < ticks


def test_what_nodes_spend_is_shared_out_over_what_became_final() -> None:
    found = spent(_look(1.0, 100, 40), _look(3.0, 300, 240))
    assert (found.seconds, found.transactions, found.blocks, found.view_changes) == (2.0, 200, 20, 0)
    assert [node.cpu_s for node in found.nodes] == [2.0, 2.0]
    assert found.per_transaction(found.cpu_s * 1e6) == 20_000.0
    # Each over its own time: who answered late has done more by then.
    early, late = _look(1.0, 100), _look(3.0, 300, 340)
    late = msgspec.structs.replace(late, nodes=(late.nodes[0], msgspec.structs.replace(late.nodes[1], at_s=3.4)))
    early = msgspec.structs.replace(
        early, nodes=(early.nodes[0], msgspec.structs.replace(late.nodes[1], at_s=1.0, transactions=100))
    )
    assert (spent(early, late).seconds, spent(early, late).per_s) == (2.4, 100.0)
    # A node that was not there before has no difference.
    assert len(spent(_look(1.0, 100), _look(3.0, 300, 240)).nodes) == 1


def test_the_limit_is_one_verification_a_transaction_and_node() -> None:
    limits = {"cores": 2.0, "ed25519_verify_us": 66.0}
    assert single_call_limit(limits, 4) == 7575.8
    assert single_call_limit(limits, 16) == 1893.9
    assert share(2_500.0, single_call_limit(limits, 4)) == 0.33


def test_ratios_are_of_the_cases_that_both_have() -> None:
    now, before = _case(100.0), _case(100.0)
    before = msgspec.structs.replace(before, final_per_s=50.0, cpu_us_per_transaction=0.0)
    other = msgspec.structs.replace(before, name="other")
    found = ratios([now], [before, other])
    assert list(found) == ["single"]
    assert (found["single"]["final/s"], found["single"]["p99"], found["single"]["cpu/tx"]) == (2.0, 1.0, None)


def test_a_document_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(document.encode({"commit": "abc", "cases": [_case()], "more": 1}))
    saved = document.read(path)
    assert (saved.commit, saved.cases) == ("abc", [_case()])
    path.write_text("{}")
    with pytest.raises(TestnetError, match="is no document"):
        document.read(path)


def test_a_document_from_before_stolen_time_was_measured_is_compared(tmp_path: Path) -> None:
    """`--compare` called it no document of scripts/bench."""
    path, case = tmp_path / "bench.json", msgspec.to_builtins(_case(50.0))
    del case["stolen"]
    path.write_text(document.encode({"commit": "abc", "cases": [case]}))
    assert ratios([_case(100.0)], document.read(path).cases)["single"]["final/s"] == pytest.approx(
        100.0 / 90.0, 1e-3
    )


def test_groups_name_cases_and_every_case_says_what_it_is() -> None:
    assert bench.expand(["wan", "single", "wan20"]) == ["wan20", "wan80", "single"]
    assert all(name in LOAD_CASES for names in GROUPS.values() for name in names)
    assert set(bench.ABOUT) == {name for name in bench.CASES if name not in LOAD_CASES and name not in GROUPS}
    # A line for people, beside its name: no docstring of a function, with names of its arguments.
    assert not [name for name in bench.CASES if not bench.about(name) or {"`", "_"} & set(bench.about(name))]


def test_only_what_lies_within_a_making_counts_for_it() -> None:
    looks = [(0.0, False), (1.0, False), (2.0, True), (5.0, True), (6.0, False), (7.0, False)]
    spans = spans_of(looks, from_s=0.5)
    assert spans == [Making(0.5, 1.0, False), Making(2.0, 5.0, True), Making(6.0, 7.0, False)]
    samples = [Sample(2.0, 2.5, 2), Sample(1.5, 2.5, 1), Sample(4.0, 5.5, 1), Sample(3.0, 5.0, 1)]
    assert latencies_within(samples, [span for span in spans if span.making]) == [0.5, 0.5, 2.0]


def test_growth_is_between_the_ends_of_the_second_half() -> None:
    assert memory_bench.growth_mb([10.0, 10.0, 50.0, 50.0, 12.0]) == 2.0
    # Of two nodes: the peak of either, the growth of the one that grew.
    first_half = [(90.0, 80.0)] * 5
    assert memory_bench.course([*first_half, *[(100.0, 70.0 + grown) for grown in range(5)]]) == (100.0, 4.0, 5.56)


def test_what_is_taken_for_a_while_is_no_growth_of_the_memory() -> None:
    flat = [70.0] * 15
    assert memory_bench.growth_mb([*flat, 110.0, 110.0, 70.0, 70.0, 70.0]) == 0.0
    assert memory_bench.growth_mb([*flat, 75.0, 75.0, 75.0, 75.0, 110.0]) == 5.0


def test_without_a_plot_to_draw_none_is_drawn(tmp_path: Path) -> None:
    assert plots.draw({"limits": {}}, tmp_path / "bench.json", Console(quiet=True)) == []


@pytest.mark.slow
def test_a_small_run_makes_a_whole_document(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    port = 20_000 + os.getpid() % 60 * 2 * API_PORT_OFFSET
    command = [
        sys.executable,
        "-P",
        "-m",
        "scripts.localnet.bench",
        "--case",
        "hot",
        "--case",
        "idle",
        "--nodes",
        "1",
    ]
    command += ["--rate", "20", "--seconds", "2", "--repeat", "1", "--base-port", str(port), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["msgspec"]
    assert found["settings"]["repeats"] == 1
    assert found["limits"]["single_call_transactions_per_s"] > 0
    assert [case["name"] for case in found["cases"]] == ["hot", "idle"]
    for case in found["cases"]:
        assert case["without_fate"] == case["failed_calls"] == 0
        assert case["refused"] == {}
        assert case["final_per_s"] > 0
        assert 0 < case["latency_ms"]["p50"] <= case["latency_ms"]["p99"] <= case["latency_ms"]["p999"]
        assert case["cpu_us_per_transaction"] > 0
        assert case["synced_writes_per_s"] > 0
        assert [node["member"] for node in case["last_run"]] == ["bank-a"]
    assert "idle" in done.stderr
    saved = document.read(out)
    assert ratios(saved.cases, saved.cases)["hot"]["final/s"] == 1.0


@pytest.mark.parametrize(("kind", "said"), [(Whole(1), "whole number"), (Number(1), "number")])
def test_what_is_no_number_is_refused_in_plain_words(kind: Any, said: str) -> None:
    """It was "not a valid integer range"."""
    with pytest.raises(click.BadParameter, match=f"'x' is not a valid {said}"):
        kind.convert("x", None, None)
