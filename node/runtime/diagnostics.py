"""Gathers what somebody else needs to understand this node: the content of the diagnostics bundle, redacted.

Everything here is chosen, nothing is passed through as it lies on disk: a field that is not named below is not in
the bundle. Its tests submit marked arguments, keys and passphrases and look for them in every byte.
"""

import asyncio
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

import consensus
from consensus.status import ReplicaStatus
from node.client.answers import Diagnosis, EvidenceItem, MemberStatus, NodeStatus
from node.client.rendering import plain_json
from node.config import NetworkConfig, NodeConfig
from node.errors import Unavailable
from node.executor import Executor
from node.peers import Transport
from node.runtime.bundle import FORMAT, Manifest, write_bundle
from node.runtime.clock import Clock
from node.runtime.recorder import Recorder
from node.store import Store
from node.store.room import free_bytes

EVIDENCE_MAX: Final = 64
# The sentence of a divergence, in whatever it is quoted: from the key on nothing is passed on.
_STATE_KEY: Final = re.compile(r"; key .*", re.DOTALL)
_VALUE_HASHES: Final = ("our_value_hash", "their_value_hash")
LIBRARIES: Final = (
    "cryptography",
    "httptools",
    "litestar",
    "msgpack",
    "msgspec",
    "plyvel",
    "pynacl",
    "structlog",
    "uvicorn",
    "uvloop",
)


class Answers(Protocol):
    """What the node says of itself to anybody who asks."""

    def status(self) -> NodeStatus:
        """Where it stands."""

    def why(self) -> Diagnosis:
        """Why blocks are made or not."""

    def members(self) -> tuple[MemberStatus, ...]:
        """The members as last heard."""

    def evidence(self) -> tuple[EvidenceItem, ...]:
        """Proofs of misbehaviour."""

    def metrics(self) -> bytes:
        """Prometheus text."""


class Diagnostics:
    """Makes bundles of one running node, one at a time. Runs on the event loop, compresses in a thread."""

    def __init__(
        self,
        config: NodeConfig,
        network: NetworkConfig,
        executor: Executor,
        store: Store,
        transport: Transport,
        recorder: Recorder,
        replica: Callable[[], ReplicaStatus],
        clock: Clock,
        version: str,
    ) -> None:
        self._config = config
        self._network = network
        self._executor = executor
        self._store = store
        self._transport = transport
        self._recorder = recorder
        self._replica = replica
        self._clock = clock
        self._version = version
        self._busy = False

    async def bundle(self, answers: Answers) -> bytes:
        """A bundle of this moment; raise Unavailable (`node_busy`) while another one is being made."""
        if self._busy:
            raise Unavailable("node_busy", "a diagnostics bundle is being made", retry_after_ms=1_000)
        self._busy = True
        started_ms = self._clock.now_ms()
        try:
            documents, recording = self._documents(answers), self._recorder.recording()
            manifest = Manifest(
                format=FORMAT,
                made_at_ms=self._clock.time_ms(),
                member=self._config.member,
                network=self._network.network_id,
                version=self._version,
                consensus=consensus_digest(),
                inputs=recording.inputs,
                failure=recording.failure,
            )
            made = await asyncio.to_thread(write_bundle, manifest, documents, recording)
            # Whoever asks without end gets a quarter of one core's time at most.
            await asyncio.sleep(3 * (self._clock.now_ms() - started_ms) * 0.001)
            return made
        finally:
            self._busy = False

    def _documents(self, answers: Answers) -> dict[str, bytes]:
        members = [
            {name: value for name, value in msgspec.structs.asdict(member).items() if name != "address"}
            for member in answers.members()
        ]
        links = [
            {name: value for name, value in msgspec.structs.asdict(peer).items() if name != "address"}
            for peer in self._transport.peers()
        ]
        found: dict[str, Any] = {
            "why": answers.why(),
            "status": answers.status(),
            "replica": self._replica(),
            "members": members,
            "links": {"peers": links, "refusals": dict(self._transport.refusals())},
            "versions": self._versions(),
            "parameters": {"parameters": self._network.parameters, "genesis_hash": self._network.genesis_hash},
            "limits": {"limits": self._config.limits, "log_level": self._config.log_level},
            "store": self._store_facts(),
            "evidence": answers.evidence()[-EVIDENCE_MAX:],
        }
        documents = {f"{name}.json": _document(value) for name, value in found.items()}
        documents["metrics.txt"] = answers.metrics()
        return documents

    def _versions(self) -> dict[str, Any]:
        return {
            "hansa": self._version,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "libraries": {name: _version(name) for name in LIBRARIES},
            "contracts_hash": self._executor.contracts_hash,
            "modules": dict(sorted(self._executor.engine.module_digests.items())),
            "consensus": consensus_digest(),
        }

    def _store_facts(self) -> dict[str, Any]:
        head = self._store.head
        return {
            "height": head.height,
            "digest": head.digest,
            "state_root": head.state_root,
            "time_ms": head.time_ms,
            "start_view": head.start_view,
            "certificate_view": None if head.certificate is None else head.certificate.view,
            "validators": [validator.id for validator in head.validators],
            "size_bytes": self._store.size_bytes(),
            "disk_free_bytes": free_bytes(self._config.data_dir),
        }


@cache
def consensus_digest() -> str:
    """The digest of the consensus sources at hand: a recording replays for certain under the same ones only."""
    hashed = hashlib.sha256()
    for path in sorted(Path(consensus.__file__).parent.glob("*.py")):
        hashed.update(path.name.encode() + b"\x00" + path.read_bytes() + b"\x00")
    return hashed.hexdigest()


def _document(value: Any) -> bytes:
    plain = _without_state_keys(plain_json(msgspec.to_builtins(value, builtin_types=(bytes,))))
    return msgspec.json.format(msgspec.json.encode(plain), indent=1)


def _without_state_keys(value: Any) -> Any:
    """The value without the state key that a divergence names, which may hold an account's name, and without the
    hashes of its values, from which a balance can be guessed.
    """
    if isinstance(value, str):
        return _STATE_KEY.sub("; its key is left out", value)
    if isinstance(value, dict):
        kept = {
            name: item
            for name, item in value.items()
            if not (name == "key" and isinstance(item, list)) and name not in _VALUE_HASHES
        }
        return {name: _without_state_keys(item) for name, item in kept.items()}
    return [_without_state_keys(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""
