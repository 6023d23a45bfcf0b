"""Steps the shipped replica through the recording in a diagnostics bundle, and compares it with what happened then.

There is no private key here: what the replica signed is played back by the hash of what was signed, so a replica
that would sign anything else shows itself; what others signed is verified in earnest. Compared are the kinds of
every step's effects, and the whole state of the replica at the end of each part, byte for byte.
"""

import json
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from consensus.codec import CodecError, unpack
from consensus.effects import Applied, Broadcast, Decide, Effect, Input, Persist, Received, Synced, Tick, VoteRecord
from consensus.image import IMAGE_SIZE_MAX, freeze, thaw
from consensus.messages import PrePrepare, Vote
from consensus.replica import Replica
from node import signatures
from node.errors import ConfigError
from node.report import printable
from node.runtime.bundle import Bundle, read_bundle
from node.runtime.diagnostics import consensus_digest
from node.runtime.recording import Image, Outcome, Step, mark, read_part, signed_name
from tests.simulation.world import brief

INPUTS_MAX: Final = 4_000_000
SENTENCE_LENGTH_MAX: Final = 1_000
_DOMAINS: Final = ("hansa/vote", "hansa/view-change")


class Difference(Exception):
    """The replica does not do what it did when this was recorded, or breaks a rule."""


class Result(NamedTuple):
    """What a replay came to. `difference` is empty or says where it first parted from the recording, and how.

    `images` were compared; `dropped` inputs had been dropped for space before the bundle was made. `rules` counts
    how often each rule was judged. `fault` is the exception that the replica raised, then as now.
    """

    inputs: int
    effects: int
    images: int
    dropped: int
    rules: Counter[str]
    difference: str
    fault: str
    replica: Replica | None

    @property
    def identical(self) -> bool:
        """Whether everything was as recorded and no rule was broken."""
        return not self.difference

    def as_json(self) -> dict[str, Any]:
        """The document of `scripts/simulate --replay-bundle FILE --json`."""
        shown = {name: getattr(self, name) for name in ("inputs", "effects", "images", "dropped")}
        rules = dict(sorted(self.rules.items()))
        return {
            **shown,
            "identical": self.identical,
            "difference": self.difference,
            "fault": self.fault,
            "rules": rules,
        }


class Conduct:
    """What one member signed and decided in the recording, judged by the rules that need no other member."""

    def __init__(self) -> None:
        self.rules: Counter[str] = Counter()
        self._slots: dict[tuple[int, int, int], bytes] = {}
        self._floor: dict[int, int] = {}
        self._decided: dict[int, bytes] = {}
        self._signed: dict[bytes, None] = {}
        self._durable: dict[bytes, None] = {}
        self._height = 0

    def signs(self, message: bytes, signature: bytes) -> None:
        """The replica signs `message`."""
        fields = unpack(message, size_max=IMAGE_SIZE_MAX)
        if not isinstance(fields, tuple) or len(fields) < 6 or fields[0] not in _DOMAINS:
            return
        if fields[0] == "hansa/vote":
            _, _, kind, view, height, digest = fields
            if height == 0:
                return  # the probe that tells whether the listed key is ours
            self._signed[signature] = None
            known = self._slots.setdefault((kind, view, height), digest)
            self._require("one vote per slot", known == digest, f"h{height} v{view}")
        else:
            height, view = fields[2], fields[3]
        lowest = self._floor.get(height, 0)
        self._require("never below a view asked for or voted in", view >= lowest, f"h{height} v{view} < v{lowest}")
        self._floor[height] = max(lowest, view)

    def does(self, effects: Sequence[Effect]) -> None:
        """The replica has these effects performed, in this order."""
        for effect in effects:
            if isinstance(effect, Persist) and isinstance(effect.record, VoteRecord):
                self._durable[effect.record.vote.signature] = None
            elif isinstance(effect, Broadcast):
                message = effect.message
                vote = message.vote if isinstance(message, PrePrepare) else message
                if isinstance(vote, Vote) and vote.signature in self._signed:
                    self._require("durable before sent", vote.signature in self._durable, brief(vote))
            elif isinstance(effect, Decide):
                self._agree(effect.height, effect.digest)

    def hears(self, given: Input | None) -> None:
        """The replica got this input."""
        if isinstance(given, Applied | Synced):
            head = given.head
            self._agree(head.height, head.digest)
            self._require("heights only grow", head.height >= self._height, f"{head.height} < {self._height}")
            self._height = max(self._height, head.height)

    def _agree(self, height: int, digest: bytes) -> None:
        known = self._decided.setdefault(height, digest)
        self._require("one block a height", known == digest, f"h{height} {digest.hex()[:8]} and {known.hex()[:8]}")

    def _require(self, rule: str, holds: bool, detail: str) -> None:
        self.rules[rule] += 1
        if not holds:
            raise Difference(f"the rule {rule!r} is broken: {detail}")


class Replay:
    """One replay of a bundle's parts. `write` gets a line for each input and effect, quiet ticks left out."""

    def __init__(
        self,
        bundle: Bundle,
        until: int | None = None,
        write: Callable[[str], None] | None = None,
        verify: Callable[[bytes, bytes, bytes], bool] | None = None,
    ) -> None:
        """`until` None: to the end; else to the input of this number, counted from the start of the process."""
        self._bundle = bundle
        self._verify = verify or signatures.verify
        self._until = until
        self._write = write
        self._conduct = Conduct()
        self._allowed: dict[bytes, bytes] = {}
        self._replica: Replica | None = None
        self._number = 0
        self._time_ms: int | None = None
        self._inputs = self._effects = self._images = self._dropped = 0
        self._fault = ""

    def run(self) -> Result:
        """Go on to the end, to `until`, or to the first difference; never raises for what a bundle holds."""
        difference = ""
        try:
            for part in self._bundle.parts:
                if self._ends():
                    break
                self._part(part.first, part.data)
        except Difference as found:
            difference = f"input {self._number}: {found}"
        except CodecError as error:
            difference = f"behind input {self._number} the recording cannot be read: {error}"
        return Result(
            inputs=self._inputs,
            effects=self._effects,
            images=self._images,
            dropped=self._dropped,
            rules=self._conduct.rules,
            difference=difference,
            fault=self._fault,
            replica=self._replica,
        )

    def _ends(self) -> bool:
        return bool(self._fault) or (self._until is not None and self._number >= self._until)

    def _part(self, first: int, data: bytes) -> None:
        dropped = first - self._number
        if dropped:
            self._dropped += dropped
            self._replica = None
            self._say(f"-- {dropped} inputs were dropped here; what follows begins with the replica's own image")
        self._number = first
        for item in read_part(data):
            if isinstance(item, Image):
                self._image(item)
            elif self._ends():
                return
            else:
                self._step(item)

    def _image(self, image: Image) -> None:
        if self._replica is not None and not self._ends():
            self._images += 1
            try:
                same = freeze(self._replica) == image.data
            except Exception as error:
                # What an image says of values is judged by nobody before: one that was made up fails anywhere.
                raise Difference(f"the replica's state is none that a replica can have: {error!r}") from error
            if not same:
                raise Difference("behind it the replica's state is another than it was then")
        if self._replica is None:
            self._replica = thaw(image.data, self._sign, self._verify)

    def _step(self, step: Step) -> None:
        replica, given, outcome = self._replica, step.given, step.outcome
        if replica is None:
            raise CodecError("a part does not begin with an image")
        self._number += 1
        self._inputs += 1
        if self._inputs > INPUTS_MAX:
            raise CodecError(f"there are more than {INPUTS_MAX} inputs")
        if isinstance(given, Tick):
            self._time_ms = given.time_ms
        if given is None or not isinstance(given, Tick) or outcome.marks != b"":
            self._say(_input_line(given))
        self._allowed = dict(outcome.signed)
        effects = self._perform(replica, given, outcome)
        if effects is None:
            return
        self._effects += len(effects)
        for effect in effects:
            self._say(f"-> {brief(effect)}")
        if outcome.marks != bytes(map(mark, effects)):
            raise Difference(f"other effects than then, when they were {_marks(outcome)}; now {_names(effects)}")
        self._conduct.hears(given)
        self._conduct.does(effects)

    def _perform(self, replica: Replica, given: Input | None, outcome: Outcome) -> list[Effect] | None:
        """The step's effects; None where it raises as it did then."""
        try:
            return replica.start() if given is None else replica.step(given)
        except Difference:
            raise
        except Exception as error:
            if outcome.marks is not None:
                raise Difference(f"the replica raises {error!r}, which it did not then") from error
            self._fault = f"{error!r}"
            self._say("".join(traceback.format_exception(error)))
            return None

    def _sign(self, message: bytes) -> bytes:
        signature = self._allowed.get(signed_name(message))
        if signature is None:
            raise Difference(
                f"the replica signs what it did not sign then: {brief(unpack(message, size_max=1 << 24))}"
            )
        self._conduct.signs(message, signature)
        return signature

    def _say(self, text: str) -> None:
        if self._write is not None:
            self._write(f"{self._number:8d} {_clock(self._time_ms)} {text}")


def _clock(time_ms: int | None) -> str:
    if time_ms is None or not 0 <= time_ms < 2**45:
        return "--:--:--.---"
    return f"{datetime.fromtimestamp(time_ms // 1000, UTC):%H:%M:%S}.{time_ms % 1000:03d}"


def _input_line(given: Input | None) -> str:
    if given is None:
        return "<- start"
    if isinstance(given, Received):
        return f"<- {printable(given.peer)}: {brief(given.message)}"
    return f"<- {brief(given)}"


def _marks(outcome: Outcome) -> str:
    return "an exception" if outcome.marks is None else f"{len(outcome.marks)} ({outcome.marks.hex(' ')})"


def _names(effects: Sequence[Effect]) -> str:
    marks = bytes(map(mark, effects)).hex(" ")
    return f"{len(effects)} ({marks}: {', '.join(type(effect).__name__ for effect in effects)})"


def report_lines(bundle: Bundle, result: Result) -> list[str]:
    """What the replay came to, and where the replica stood at its end, for people."""
    inputs = f"{result.inputs} inputs, {result.effects} effects, {result.images} whole states"
    lines = [f"replayed {inputs}: {'all identical' if result.identical else 'NOT identical'}"]
    if result.difference:
        lines.append(f"first difference: {printable(result.difference)}")
    if result.difference and bundle.manifest.consensus != consensus_digest():
        lines.append("the bundle was made by other consensus sources than these: replay it with the same release")
    if result.fault:
        lines.append(f"the recorded fault comes again: {printable(result.fault)}")
    if result.dropped:
        lines.append(f"{result.dropped} inputs had been dropped for space; each part began with an exact image")
    if bundle.manifest.failure:
        lines.append(f"the recorder had stopped by itself: {printable(bundle.manifest.failure)}")
    rules = ", ".join(f"{rule} {count}" for rule, count in sorted(result.rules.items()))
    lines.append(f"rules that one member can be judged by: {rules or 'nothing to judge'}")
    return lines + (_standing(result.replica) if result.replica is not None and not result.difference else [])


def _standing(replica: Replica) -> list[str]:
    """Where the replica stands and what it waits for."""
    try:
        status = replica.status()
    except Exception as error:
        return [f"the image at the beginning was none that a replica can have: {printable(repr(error))}"]
    lines = [
        f"height {status.height}, view {status.view}, primary {status.primary}: {status.phase.value}"
        + (f", waits for {', '.join(status.missing)}" if status.missing else ""),
        f"prepared by {', '.join(status.voted_prepare) or 'nobody'}; "
        f"committed by {', '.join(status.voted_commit) or 'nobody'}; {status.quorum} are needed",
    ]
    if status.askers:
        lines.append("asking for views: " + ", ".join(f"{name} for {view}" for name, view in status.askers))
    for text in (status.abstaining, status.suspicion, status.refusal):
        if text:
            lines.append(text)
    lines += [
        f"{peer.member}: height {peer.height}, view {peer.view}, heard {peer.heard_ms_ago} ms before"
        for peer in status.peers
    ]
    return [printable(line) for line in lines]


def _said_then(bundle: Bundle) -> list[str]:
    """What the node itself answered to `why` when the bundle was made."""
    try:
        why = msgspec.json.decode(bundle.documents.get("why.json", b"{}"))
        sentences = [str(sentence) for sentence in why.get("sentences", [])][:40]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError):
        return []
    return [f"   {printable(sentence, SENTENCE_LENGTH_MAX)}" for sentence in sentences]


def replay_file(path: Path, until: int | None, *, quiet: bool = False, as_json: bool = False) -> int:
    """Replay the bundle in `path` and print it; 0 when identical, 1 when not, 2 where it is no bundle."""
    try:
        bundle = read_bundle(path)
    except ConfigError as error:
        # A path may be longer than what of a peer's text is shown.
        message = printable(error.message, SENTENCE_LENGTH_MAX)
        print(f"simulate: {error.code}: {message}. {error.entry.action}", file=sys.stderr)
        return ConfigError.exit_code
    manifest = bundle.manifest
    write = (lambda line: print(line, file=sys.stderr)) if as_json else print
    made = _clock(manifest.made_at_ms)
    write(printable(f"{manifest.member} of {manifest.network}, Hansa {manifest.version}, at {made} UTC; it said:"))
    for line in _said_then(bundle):
        write(line)
    result = Replay(bundle, until, None if quiet else write).run()
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        print("\n".join(report_lines(bundle, result)))
    return 0 if result.identical else 1
