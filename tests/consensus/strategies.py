"""Hostile but typed: every message that the codec would let through, mostly near what the stage is working on."""

from hypothesis import strategies as st

from consensus.messages import (
    Certificate,
    Decided,
    LatestVote,
    Message,
    NewView,
    PrePrepare,
    Status,
    ViewChange,
    Vote,
    VoteKind,
)

from .stage import GENESIS, digest_of

PAYLOADS = (b"one", b"two", b"three")
KINDS = st.sampled_from(VoteKind)
VIEWS = st.integers(0, 3) | st.sampled_from([2**63 - 1, 2**62])
HEIGHTS = st.integers(0, 4) | st.sampled_from([2**63 - 1, 2**40])
INDICES = st.integers(0, 5) | st.just(127)
SIGNATURES = st.sampled_from([b"s" * 64, b"t" * 64])
DIGESTS = st.sampled_from([GENESIS, *(digest_of(payload) for payload in PAYLOADS)])


def certificates() -> st.SearchStrategy[Certificate]:
    """Certificates with any signatures."""
    signatures = st.lists(st.tuples(INDICES, SIGNATURES), max_size=5).map(tuple)
    return st.builds(Certificate, KINDS, VIEWS, HEIGHTS, DIGESTS, signatures)


def votes() -> st.SearchStrategy[Vote]:
    """Votes with any signature."""
    return st.builds(Vote, KINDS, VIEWS, HEIGHTS, DIGESTS, INDICES, SIGNATURES)


def view_changes() -> st.SearchStrategy[ViewChange]:
    """View changes with any certificates."""
    maybe = st.none() | certificates()
    return st.builds(ViewChange, HEIGHTS, VIEWS, maybe, maybe, INDICES, SIGNATURES)


def messages() -> st.SearchStrategy[Message]:
    """Any message."""
    return st.one_of(
        votes(),
        view_changes(),
        st.builds(NewView, HEIGHTS, VIEWS, st.lists(view_changes(), max_size=4).map(tuple), INDICES, SIGNATURES),
        st.builds(PrePrepare, votes(), st.sampled_from(PAYLOADS), st.none() | certificates()),
        st.builds(Status, HEIGHTS, VIEWS, DIGESTS, st.integers(0, 2**53 - 1), INDICES, SIGNATURES),
        st.builds(Decided, certificates()),
        st.builds(LatestVote, st.none() | votes()),
    )
