"""Which of its own TLS keys a node shows, and to whom: the newest at hand, and where that fails the former one.

While a rotation overlaps, a member that was away knows this node by the former key alone. As a dialler it says by
which key it knows the node, and is answered with that; dialled, it takes no link under the new key, and the next
attempt shows the former one.
"""

import ssl
from collections.abc import Iterable, Sequence

from node.keys import SigningKey, tls_context


class ShownKeys:
    """The TLS contexts of one node. Each change makes new ones: a context cannot forget whom it took."""

    server: ssl.SSLContext
    """For those who dial this node."""

    def __init__(self, keys: Sequence[SigningKey]) -> None:
        """`keys` are all at hand; the first one is shown until `show` says otherwise."""
        self._keys = {key.public: key for key in keys}
        self._shown = tuple(keys[:1])
        self._clients: tuple[ssl.SSLContext, ...] = ()

    def show(self, valid: Sequence[bytes], pinned: Iterable[bytes]) -> None:
        """From now on the first of `valid` that is at hand is shown, or the next one; `pinned` are taken."""
        at_hand = tuple(self._keys[key] for key in valid if key in self._keys)
        self._shown = at_hand or self._shown[:1]
        others = tuple(pinned)
        self._clients = tuple(tls_context(key, server=False, pinned=others) for key in self._shown)
        servers = [tls_context(key, server=True, pinned=others) for key in self._shown]
        self.server = servers[0]
        if len(servers) > 1:
            by_name = {server_name(key.public): item for key, item in zip(self._shown, servers, strict=True)}

            def choose(secured: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
                secured.context = by_name.get(name or "", servers[0])

            self.server.sni_callback = choose

    def client(self, *, former: bool) -> ssl.SSLContext:
        """Return the context to dial with; `former` shows the former key where it is valid and at hand."""
        return self._clients[-1 if former else 0]

    def has(self, key: bytes) -> bool:
        """Whether the key is at hand."""
        return key in self._keys


def server_name(tls_key: bytes) -> str:
    """Return by which name a dialler asks for the node that it knows by this key (TLS: server name indication)."""
    return tls_key.hex()[:32]
