"""Numbers of things as people read them, in the sentences of every layer."""


def counted(count: int, thing: str) -> str:
    """Return "1 block", "0 blocks" or "2,400 blocks" for the singular `thing`, whose plural ends in s."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def blocks_from(first: int, last: int) -> str:
    """Return "block 7" or "blocks 7 to 9"."""
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def agreeing(count: int, one: str, more: str) -> str:
    """Return the verb that goes with `count` things: "was" or "were"."""
    return one if count == 1 else more
