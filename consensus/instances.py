"""Which processes the members run, by their own signed word: how a key that lives in two places is noticed.

Every process draws an instance (16 random bytes) at its start. Whoever connects is told which process of its
member was met last, and answers with a signed Presence that names both. An instance cannot be named before it was
drawn, so (X met Y) says that X lived after Y had started, and together with (Y met X) that both lived at once.
A restart gives one of the two only: the old process is not there to sign. Nobody without the key can make either.
Numbers in brackets are README sections: [9.8].
"""

from consensus.context import Context
from consensus.effects import Broadcast, Send
from consensus.members import Members
from consensus.messages import INSTANCE_SIZE, KnownInstance, Presence, TwoInstances, presence_bytes

PRESENCES_MAX = 8
"""Kept of each member, the newest."""
PAUSE_MS = 100
"""A peer gets at most one signed answer in this time."""


class Instances:
    """What this member knows of every member's processes, its own included."""

    def __init__(self, context: Context) -> None:
        """No process was met yet."""
        self._context = context
        self._own = context.config.instance
        # By name and key: what one key has said proves nothing about the next one.
        self._met: dict[tuple[str, bytes], list[Presence]] = {}
        self._answered_ms: dict[str, int] = {}

    def on_connected(self, peer: str, members: Members) -> None:
        """Ask `peer` which process it is, and show it the one that was met last."""
        index = members.index(peer)
        if index is not None and len(self._own) == INSTANCE_SIZE:
            met = self._met.get((peer, members.key(index)))
            self._context.emit(Send(peer, KnownInstance(met[-1].instance if met else None)))

    def on_known(self, peer: str, message: KnownInstance, members: Members, me: int | None) -> None:
        """Tell `peer` that this process lives, and that it was shown another one, if it was."""
        now_ms = self._context.now_ms
        last_ms = self._answered_ms.get(peer)
        if me is None or len(self._own) != INSTANCE_SIZE or not self._context.key_is_ours:
            return
        if members.index(peer) is None or (last_ms is not None and now_ms - last_ms < PAUSE_MS):
            return
        self._answered_ms[peer] = now_ms
        self._context.emit(Send(peer, self._presence(message.instance, me)))

    def on_presence(self, peer: str, message: Presence, members: Members, me: int | None) -> None:
        """Take a member's own word, or what a peer shows this process of another one with its key.

        Whose word it is says the key alone: the place that it names is that of the signer's list, and lists change.
        """
        index = members.index(peer)
        if me is not None and message.met == self._own:
            # Only who met *this* process counts: a presence of an earlier process of ours proves nothing. Nor does
            # one of the key that this process replaces, while the list still names that one.
            other = message.instance != self._own and self._context.key_is_ours
            if other and self._context.verifier.presence(message, members.key(me)):
                own = self._presence(message.instance, me)
                self._accuse(members.id(me), members.key(me), own, message)
                self._context.own_key_equivocates()  # [9.8]
        elif index is not None and index != me and self._context.verifier.presence(message, members.key(index)):
            self._note(peer, members.key(index), message)

    def list_changed(self, before: Members, members: Members, me: int | None) -> None:
        """Drop what is kept of strangers and of replaced keys; meet the members that were not to be judged before.

        Who is new, or has a new key, is asked, and says unasked which process it is. Members learn of the list one
        after the other: what comes too early is dropped, and then the other of the two comes later.
        """
        listed = {(one.id, one.voting_key): None for one in members}
        self._met = {whose: met for whose, met in self._met.items() if whose in listed}
        self._answered_ms = {peer: ms for peer, ms in self._answered_ms.items() if members.index(peer) is not None}
        known = {(one.id, one.voting_key): None for one in before}
        new = [members.index(name) for name, key in listed if (name, key) not in known]
        if len(self._own) != INSTANCE_SIZE:
            return
        if me in new and me is not None and self._context.key_is_ours:
            self._context.emit(Broadcast(self._presence(None, me)))
        for index in new:
            if index is not None and index != me:
                self.on_connected(members.id(index), members)

    def _note(self, peer: str, key: bytes, message: Presence) -> None:
        """Keep the word of a member's process; when another one lived with it, prove that to it and to all."""
        met = self._met.setdefault((peer, key), [])
        if message in met:
            met.remove(message)
        met.append(message)
        del met[:-PRESENCES_MAX]
        for other in met:
            if other.met == message.instance and other.instance != message.instance:
                self._context.emit(Send(peer, other))
                if message.met == other.instance:
                    self._accuse(peer, key, other, message)  # [10.3]

    def _accuse(self, member: str, key: bytes, one: Presence, other: Presence) -> None:
        """Prove it once for each key: a member whose new key lives twice as well is accused again."""
        first, second = sorted((one, other), key=lambda presence: presence.instance)
        self._context.accuse(member, f"instance {key.hex()}", 0, 0, TwoInstances(first, second))

    def _presence(self, met: bytes | None, me: int) -> Presence:
        shown = met if met != self._own else None
        unsigned = Presence(self._own, shown, me, b"")
        signature = self._context.sign(presence_bytes(self._context.config.network, unsigned))
        return Presence(self._own, shown, me, signature)
