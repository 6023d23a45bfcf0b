"""What was recorded replays to the same effects and states, and whatever differs is named."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from consensus.codec import encode
from consensus.effects import Broadcast, Connected, Input, Persist, Received, Tick, VoteRecord
from consensus.image import freeze
from consensus.messages import Vote, VoteKind
from consensus.replica import Replica
from consensus.verification import Verifier
from node.runtime.bundle import write_bundle
from node.runtime.recorder import Recorder, Recording
from tests.consensus.stage import TIME_MS, Stage
from tests.simulation.recorded import Recorded, bundle_of, record_world
from tests.simulation.replay import Conduct, Difference, Replay, Result, report_lines


def replay(recording: Recording, verify: Callable[[bytes, bytes, bytes], bool], **options: Any) -> Result:
    return Replay(bundle_of(recording), verify=verify, **options).run()


@pytest.fixture(scope="module")
def lives() -> list[Recorded]:
    """Members of simulated networks with crashes, restarts and view changes, each life recorded."""
    # In several parts, so that whole states are compared on the way too.
    found = [life for seed in (20, 27) for life in record_world(seed, 12_000, part_bytes_max=1 << 13)]
    return [life for life in found if life.recorder.recording().inputs > 300]


@pytest.fixture(scope="module")
def life(lives: list[Recorded]) -> Recorded:
    """The longest of them."""
    return max(lives, key=lambda life: life.recorder.recording().inputs)


def test_every_life_replays_with_identical_effects_signatures_and_states(lives: list[Recorded]) -> None:
    judged = 0
    for life in lives:
        recording = life.recorder.recording()
        result = replay(recording, life.verify)
        assert (result.difference, recording.failure) == ("", "")
        assert result.inputs == recording.inputs
        assert result.images == len(recording.parts)
        assert result.replica is not None
        assert freeze(result.replica) == freeze(life.replica)
        judged += result.rules["durable before sent"]
    assert len(lives) >= 4
    assert judged > 50
    assert max(len(life.recorder.recording().parts) for life in lives) > 3


@pytest.mark.slow
def test_many_lives_replay() -> None:
    for seed in range(2_000, 2_010):
        for life in record_world(seed, 30_000, 1 << 17, 1 << 14):
            recording = life.recorder.recording()
            result = replay(recording, life.verify)
            assert (result.difference, recording.failure) == ("", ""), seed
            assert result.inputs + result.dropped == recording.inputs


def test_parts_that_were_dropped_are_counted_and_the_rest_replays() -> None:
    stage, recorder = stalled(Recorder(4_000, 1_500))
    recording = recorder.recording()
    result = replay(recording, stage.signer.verify)
    assert result.difference == ""
    assert result.dropped > 0
    assert recording.parts[0].first == 0
    assert result.inputs + result.dropped == recording.inputs
    assert any("dropped for space" in line for line in report_lines(bundle_of(recording), result))


def stalled(recorder: Recorder, steps: int = 400) -> tuple[Stage, Recorder]:
    """A member that hears nothing but statuses for a long time, and the recorder beside it."""
    stage = Stage()
    stage.replica._context.sign = recorder.signing(stage.replica._context.sign)
    recorder.begin(lambda: freeze(stage.replica))
    for number in range(1, steps + 1):
        tick = Tick(1_000_000 + 50 * number, TIME_MS + 50 * number)
        recorder.stepped(tick, stage.replica.step(tick))
        heard = Received("member-1", stage.status(1, TIME_MS + number))
        recorder.stepped(heard, stage.replica.step(heard))
    return stage, recorder


def test_until_stops_at_that_input_and_shows_every_line_up_to_it(life: Recorded) -> None:
    lines: list[str] = []
    result = replay(life.recorder.recording(), life.verify, until=100, write=lines.append)
    assert (result.inputs, result.difference) == (100, "")
    numbers = [int(line.split()[0]) for line in lines]
    assert numbers == sorted(numbers)
    assert numbers[0] == 1
    assert numbers[-1] <= 100
    assert any("<- start" in line for line in lines)
    assert any("-> Broadcast(message=" in line for line in lines)


def test_a_replica_that_judges_otherwise_is_found_at_its_first_step_that_differs(
    life: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Verifier, "vote", lambda *_: False)
    result = replay(life.recorder.recording(), life.verify)
    assert not result.identical
    assert result.difference.startswith("input ")
    assert "NOT identical" in report_lines(bundle_of(life.recorder.recording()), result)[0]


def test_a_signature_over_anything_else_is_found(life: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus.replica.status_bytes", lambda *_: encode(("hansa/status", "another network")))
    result = replay(life.recorder.recording(), life.verify)
    assert "signs what it did not sign then: (hansa/status, another network)" in result.difference.replace("'", "")


def test_a_state_that_differs_without_another_effect_is_found(
    life: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Replica.step

    def forgetful(replica: Replica, given: Input) -> Any:
        effects = step(replica, given)
        replica._peer_heard_ms.clear()
        return effects

    monkeypatch.setattr(Replica, "step", forgetful)
    assert (
        "the replica's state is another than it was then"
        in replay(life.recorder.recording(), life.verify).difference
    )


def test_a_recorded_fault_comes_again_and_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, recorder = stalled(Recorder(), 5)
    recorder.stepped(Connected("member-2"), None)
    recording = recorder.recording()
    assert "input 11" in replay(recording, stage.signer.verify).difference

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Replica, "_on_connected", broken)
    lines: list[str] = []
    result = replay(recording, stage.signer.verify, write=lines.append)
    assert (result.identical, result.fault, result.inputs) == (True, "ZeroDivisionError('a bug')", 11)
    assert any("Traceback" in line for line in lines)


def test_a_release_with_other_consensus_sources_is_named_where_something_differs(life: Recorded) -> None:
    bundle = bundle_of(life.recorder.recording(), consensus="another release")
    result = Replay(bundle, verify=lambda *_: False).run()
    assert not result.identical
    assert any("other consensus sources" in line for line in report_lines(bundle, result))


def vote(height: int, view: int, digest: bytes) -> bytes:
    return encode(("hansa/vote", "net", 1, view, height, digest))


def test_what_one_member_can_be_judged_by_is_judged() -> None:
    conduct = Conduct()
    conduct.signs(vote(0, 0, b"probe"), b"0")
    conduct.signs(vote(0, 0, b"other probe"), b"1")
    conduct.signs(vote(5, 2, b"a"), b"2")
    with pytest.raises(Difference, match="one vote per slot"):
        conduct.signs(vote(5, 2, b"b"), b"3")
    with pytest.raises(Difference, match="never below"):
        conduct.signs(vote(5, 1, b"a"), b"4")
    with pytest.raises(Difference, match="durable before sent"):
        conduct.does([Broadcast(Vote(VoteKind.PREPARE, 2, 5, b"a", 0, b"2"))])
    record = VoteRecord(Vote(VoteKind.PREPARE, 2, 5, b"a", 0, b"2"), False, None)
    conduct.does([Persist(record), Broadcast(record.vote)])


def test_a_made_up_recording_is_refused_in_words(life: Recorded) -> None:
    part = life.recorder.recording().parts[0]
    for data, why in (
        (b"", "identical"),
        (b"\x00\x00\x00\x01\x90", "cannot be read"),
        (part.data[:-3], "cut off"),
        (part.data[4:], "cannot be read"),
        (b"\xff\xff\xff\xff" + part.data, "cut off"),
    ):
        recording = Recording((msgspec.structs.replace(part, data=data),), part.inputs, "")
        result = replay(recording, life.verify)
        assert any(why in line for line in report_lines(bundle_of(recording), result)), why


def test_a_recording_with_flipped_bytes_ends_in_words_and_never_in_an_exception(life: Recorded) -> None:
    chance, part = random.Random(2), life.recorder.recording().parts[0]
    for _ in range(60):
        data = bytearray(part.data)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        recording = Recording((msgspec.structs.replace(part, data=bytes(data)),), part.inputs, "")
        result = replay(recording, life.verify, until=400)
        assert report_lines(bundle_of(recording), result)


def test_the_command_replays_a_file(
    life: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.simulation import runner  # all the other commands come with it

    monkeypatch.setattr("tests.simulation.replay.signatures.verify", life.verify)
    recording = life.recorder.recording()
    file = tmp_path / "bundle.zip"
    why = json.dumps({"sentences": ["No block can be made.", "\x1b[31m red"]}).encode()
    file.write_bytes(write_bundle(bundle_of(recording).manifest, {"why.json": why}, recording))
    assert runner.main(["--replay-bundle", str(file), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "No block can be made." in shown
    assert "\x1b" not in shown
    assert f"replayed {recording.inputs} inputs" in shown
    assert "all identical" in shown
    assert runner.main(["--replay-bundle", str(file), "--json", "--quiet", "--until", "50"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == 50
    assert runner.main(["--replay-bundle", str(tmp_path / "none.zip")]) == 2
    assert "bundle_unreadable" in capsys.readouterr().err
