"""Whether this node runs the code that the network agreed on, and if not, which module differs.

Agreed is what a quorum of the validators says that it runs (each in its greeting, this node included); where no
such quorum is known, the code that made the last block. So a whole network that was upgraded together votes at
once, and one member that was upgraded alone, or left behind, does not. Who differs follows: it applies every
decided block whose roots its own code comes to. Believing a greeting is safe: a vote is only ever cast for a block
that was executed here and came to the same roots (and of other code than one's own only where a quorum has prepared
it), and fewer members than a quorum can talk nobody into silence.

Which versions of the contracts are active is the ledger's to say, and a change of them at one height is no
difference of code: whatever this node's own code was under other versions counts as its own. But a version that
the ledger names and that is not here, or not with the bytes that were decided on, takes the vote whatever the
others say.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence

import structlog

from contracts.engine import manifest_hash
from node.config import NetworkConfig
from node.errors import HansaError
from node.peers import Transport
from node.runtime.clock import Clock
from node.wire import FetchManifest, Manifest

ASK_INTERVAL_MS = 5_000
ANSWER_TIMEOUT_S = 5.0
NAMED_MAX = 5
ALIKE_MAX = 64
"""So many of its own hashes a node remembers: a link stands as long, and greets once."""


class CodeAgreement:
    """Compares this node's code with the network's. Runs on the event loop."""

    def __init__(
        self,
        network: NetworkConfig,
        member: str,
        manifest: Sequence[str],
        last_block: bytes | None,
        transport: Transport,
        clock: Clock,
        on_change: Callable[[], None],
        on_failure: Callable[[BaseException], None],
        former: bytes | None = None,
    ) -> None:
        """`last_block` is the contracts hash in the head's header (None: genesis, which has none).

        `former` is what this node's own was before a contract's version changed last.
        """
        self.set_validators([validator.id for validator in network.validators])
        self._member = member
        self._manifest = tuple(manifest)
        self._own = manifest_hash(manifest)
        self._alike = deque([self._own if former is None else former, self._own], ALIKE_MAX)
        self._lacking: tuple[str, ...] = ()
        self._stopped = ""
        self._last_block = last_block
        self._transport = transport
        self._clock = clock
        self._on_change = on_change
        self._on_failure = on_failure
        self._agreed = self._as_own(last_block) or self._own
        self._theirs: tuple[bytes, tuple[str, ...]] | None = None
        self._ask_due_ms = clock.now_ms()
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("code")

    def set_validators(self, validators: Sequence[str]) -> None:
        """What a quorum of these runs is agreed from now on."""
        self._validators = tuple(validators)
        self._quorum = (len(validators) + (len(validators) - 1) // 3) // 2 + 1

    @property
    def differs(self) -> bool:
        """Whether this node runs other code than the network agreed on."""
        return self._agreed != self._own or bool(self._lacking or self._stopped)

    @property
    def sentence(self) -> str:
        """What differs, for people; empty where nothing does."""
        if not self.differs:
            return ""
        if self._lacking or self._stopped:
            return ", ".join(self._lacking) or self._stopped
        if self._theirs is None or self._theirs[0] != self._agreed:
            return f"code {self._own.hex()[:16]} here, {self._agreed.hex()[:16]} agreed"
        names = differing(self._manifest, self._theirs[1])
        more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
        return ", ".join(names[:NAMED_MAX]) + more

    @property
    def own(self) -> bytes:
        """The contracts hash of this node's own code, in the versions that are active now."""
        return self._own

    @property
    def former(self) -> tuple[bytes, ...]:
        """What it was under other versions."""
        return tuple(code for code in dict.fromkeys(self._alike) if code != self._own)

    def on_applied(self, contracts_hash: bytes) -> None:
        """A block of this code was applied."""
        self._last_block = contracts_hash
        if self._stopped:
            self._stopped = ""
            self._on_change()

    def on_active(self, manifest: Sequence[str], lacking: Sequence[str]) -> None:
        """The contracts of `manifest` are active here from now on; of what the ledger names, `lacking` is not
        here.
        """
        own = manifest_hash(manifest)
        if (own, tuple(lacking)) == (self._own, self._lacking):
            return
        agreed_with_own = self._agreed == self._own
        self._manifest, self._own, self._lacking = tuple(manifest), own, tuple(lacking)
        self._alike.append(own)
        if agreed_with_own or self._agreed in self._alike:
            self._agreed = own
        if self._lacking:
            self._log.error("the ledger has a contract active that is not here", contracts=self._lacking)
        self._on_change()

    def on_missing(self, sentence: str) -> None:
        """The next block, which is decided, cannot be executed: it needs a contract that is not here."""
        if self._stopped != sentence:
            self._stopped = sentence
            self._log.error("the network has gone on with a contract that is not here", block=sentence)
            self._on_change()

    def judge(self) -> None:
        """Take account of what is known now; call it every while."""
        announced = {info.id: info.contracts_hash for info in self._transport.peers()}
        announced[self._member] = self._own
        counts = Counter(self._as_own(announced.get(name)) for name in self._validators)
        agreed = next((code for code, count in counts.items() if code and count >= self._quorum), None)
        agreed = agreed or self._as_own(self._last_block) or self._own
        if agreed != self._agreed:
            self._agreed = agreed
            if agreed != self._own:
                self._log.error("this node runs other code than the network", here=self._own.hex()[:16])
            self._on_change()
        known = self._theirs is not None and self._theirs[0] == agreed
        if agreed != self._own and not known and self._task is None and self._clock.now_ms() >= self._ask_due_ms:
            self._ask_due_ms = self._clock.now_ms() + ASK_INTERVAL_MS
            holders = [info.id for info in self._transport.peers() if info.contracts_hash == agreed]
            self._task = asyncio.get_running_loop().create_task(self._ask(agreed, holders))
            self._task.add_done_callback(self._finished)

    def on_fetch(self, peer: str, message: FetchManifest) -> None:
        """`peer` is answered with the lines that this node's contracts hash is made of."""
        self._transport.send(peer, Manifest(message.request, self._manifest))

    async def close(self) -> None:
        """Nothing is asked any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _as_own(self, code: bytes | None) -> bytes | None:
        """The code, or this node's own where it is what that was when other versions were active."""
        return self._own if code in self._alike else code

    async def _ask(self, agreed: bytes, holders: Sequence[str]) -> None:
        """Learn the agreed code's lines from somebody who runs it; their digest proves them."""
        for peer in holders:
            try:
                reply = await self._transport.request(peer, FetchManifest(0), ANSWER_TIMEOUT_S)
            except HansaError:
                continue
            if isinstance(reply, Manifest) and manifest_hash(reply.lines) == agreed:
                self._theirs = (agreed, reply.lines)
                self._log.error("which code differs", modules=self.sentence)
                self._on_change()
                return

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)


def differing(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    """Return the names of what differs between two manifests: modules, contract versions, Python."""
    left, right = _by_name(ours), _by_name(theirs)
    names = [name for name in sorted({**left, **right}) if left.get(name) != right.get(name)]
    return [_named(name, left.get(name), right.get(name)) for name in names]


def _by_name(lines: Sequence[str]) -> dict[str, str]:
    """The first line says which semantics and which Python; any other is a name and its version or digest."""
    rows = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in lines[1:]}
    return {"python and semantics": lines[0] if lines else "", **rows}


def _named(name: str, ours: str | None, theirs: str | None) -> str:
    if ours is None:
        return f"{name} (not here)"
    if theirs is None:
        return f"{name} (here only)"
    return f"{name} ({ours} here, {theirs} there)" if len(ours) < 64 else name
