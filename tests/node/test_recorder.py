"""The recorder: bounded, cheap, it keeps the beginning of a stall, and it never stops the node."""

import pytest

from consensus.effects import Applied, Connected, Head, Input, PayloadChecked, Received, Synced, Tick, Withhold
from consensus.image import NOT_KEPT
from consensus.members import Members, Validator
from consensus.messages import PrePrepare, Status, Vote, VoteKind
from node.runtime.recorder import STALL_PARTS_KEPT, Recorder, Recording
from node.runtime.recording import Image, Step, read_part

MEMBERS = Members(tuple(Validator(f"bank-{letter}", letter.encode() * 32) for letter in "abcd"))
MARKER = b"MARKED-ARGUMENT"


def status(number: int) -> Input:
    return Received("bank-b", Status(1, 0, bytes(32), number, 1, number.to_bytes(64, "big")))


def applied(height: int) -> Input:
    return Applied(Head(height, bytes(32), None, 0, MEMBERS))


def steps(recording: Recording) -> list[Step]:
    return [item for part in recording.parts for item in read_part(part.data) if isinstance(item, Step)]


def begun(recording_bytes_max: int = 1 << 20, part_bytes_max: int = 1 << 14) -> Recorder:
    recorder = Recorder(recording_bytes_max, part_bytes_max)
    recorder.begin(lambda: b"image")
    return recorder


def size(recording: Recording) -> int:
    return sum(len(part.data) for part in recording.parts)


def test_every_input_comes_back_as_it_was_given() -> None:
    vote = Vote(VoteKind.PREPARE, 0, 1, bytes(32), 0, bytes(64))
    given: list[Input] = [
        Tick(1_000, 5_000),
        *(Tick(1_000 + 50 * number, 5_000 + 51 * number) for number in range(1, 9)),
        Tick(90_000, 4_000),  # the process was paused, and the wall clock set back
        Connected("bank-c"),
        status(7),
        status(7),
        Received("bank-a", PrePrepare(vote, b"p" * 300, None)),
        PayloadChecked(1, 0, bytes(32), None, b"p" * 300, "nobody sent the transactions"),
        PayloadChecked(1, 0, bytes(32), False, None, "x"),
        applied(1),
        Synced(Head(2, bytes(32), None, 1, MEMBERS, MEMBERS, ("bank-b",))),
        Withhold(""),
    ]
    recorder = begun()
    for item in given:
        recorder.stepped(item, [])
    found = [step.given for step in steps(recorder.recording())]
    assert len(found) == len(given)
    for made, item in zip(found, given, strict=True):
        if isinstance(item, Received) and isinstance(item.message, PrePrepare):
            assert isinstance(made, Received)
            assert isinstance(made.message, PrePrepare)
            assert (made.message.vote, len(made.message.payload)) == (vote, 300)
        elif isinstance(item, PayloadChecked) and item.payload:
            assert isinstance(made, PayloadChecked)
            assert (made.reason, len(made.payload or b"")) == (item.reason, 300)
        else:
            assert made == item


def test_memory_is_bounded_whatever_comes() -> None:
    recorder = begun(60_000, 10_000)
    for number in range(4_000):
        recorder.stepped(status(number), [])
        if number % 10 == 0:
            recorder.stepped(applied(number), [])
    recording = recorder.recording()
    # The cap, the part in work, and at most one entry beyond each part's limit.
    assert size(recording) < 60_000 + 2 * 10_000
    assert len(recording.parts) >= 5
    assert recording.inputs == 4_400
    newest = recording.parts[-1]
    assert newest.first + newest.inputs == recording.inputs


def test_of_a_stall_the_beginning_is_kept_and_the_latest_part() -> None:
    recorder = begun(60_000, 10_000)
    for number in range(1_000):
        recorder.stepped(status(number), [])
    recorder.stepped(applied(1), [])
    for number in range(10_000):
        recorder.stepped(status(number), [])
    recording = recorder.recording()
    assert size(recording) < 60_000 + 2 * 10_000
    beginning = [part for part in recording.parts if part.first <= 1_000 + 1]
    assert len(beginning) == 1
    assert beginning[0].first + beginning[0].inputs > 1_000
    kept = list(recording.parts[:STALL_PARTS_KEPT])
    assert kept[1].first == kept[0].first + kept[0].inputs, "the part behind the beginning is kept too"
    assert recording.parts[STALL_PARTS_KEPT].first > kept[1].first + kept[1].inputs, "and then something is missing"
    assert next(type(item) for item in read_part(recording.parts[2].data)) is Image
    newest = recording.parts[-1]
    assert newest.first + newest.inputs == recording.inputs == 11_001


def test_ticks_and_repeated_messages_cost_next_to_nothing() -> None:
    recorder = begun()
    for number in range(1_200):
        recorder.stepped(Tick(50 * number, 50 * number + number % 3), [])
    ticks = size(recorder.recording())
    assert ticks < 1_200 * 2 + 100
    for _ in range(1_000):
        recorder.stepped(status(1), [])
    assert size(recorder.recording()) - ticks < 1_000 * 20


def test_no_payload_and_no_words_about_the_state_are_recorded() -> None:
    recorder = begun()
    vote = Vote(VoteKind.PREPARE, 0, 1, bytes(32), 0, bytes(64))
    recorder.stepped(Received("bank-a", PrePrepare(vote, MARKER * 20, None)), [])
    recorder.stepped(PayloadChecked(1, 0, bytes(32), True, MARKER, ""), [])
    recorder.stepped(Withhold(f"differs at the key {MARKER.decode()}"), [])
    recording = recorder.recording()
    assert all(MARKER not in part.data for part in recording.parts)
    assert steps(recording)[-1].given == Withhold(NOT_KEPT)


def test_a_signature_is_recorded_with_the_step_that_made_it() -> None:
    recorder = Recorder()
    sign = recorder.signing(lambda message: message * 2)
    recorder.begin(lambda: b"image")
    assert sign(b"one") == b"oneone"
    recorder.stepped(Connected("bank-b"), [])
    recorder.stepped(Connected("bank-c"), [])
    first, second = steps(recorder.recording())
    assert [signature for _, signature in first.outcome.signed] == [b"oneone"]
    assert second.outcome.signed == ()


def test_a_fault_of_the_recorder_ends_the_recording_and_nothing_else() -> None:
    recorder = Recorder(1 << 20, 1_000)
    images = iter([b"image"])
    recorder.begin(lambda: next(images))
    for number in range(100):
        recorder.stepped(status(number), [])
    recording = recorder.recording()
    assert "StopIteration" in recording.failure
    assert len(recording.parts) >= 1
    sign = recorder.signing(lambda message: message)
    assert sign(b"x") == b"x"
    recorder.stepped(status(1), [])


def test_a_recorder_that_has_not_begun_has_nothing() -> None:
    assert Recorder().recording() == Recording((), 0, "")


@pytest.mark.parametrize("raised", [True, False])
def test_a_step_that_raised_is_told_from_one_without_effects(raised: bool) -> None:
    recorder = begun()
    recorder.stepped(Connected("bank-b"), None if raised else [])
    assert (steps(recorder.recording())[0].outcome.marks is None) == raised
