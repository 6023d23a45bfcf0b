"""What the verifier says of forged packs, counted by the way in which they were forged."""

import argparse

import hansa_verify

from tests.verifier.forger import WAYS, Forger
from tests.verifier.packs import MadePack, made_packs


class Tally:
    """How many mutants of a way there were, how many the verifier refused, and why."""

    def __init__(self) -> None:
        self.made = 0
        self.refused = 0
        self.other_claim = 0
        """Refused only because they are about something else than expected: a true claim, but not the one."""
        self.accepted: list[tuple[str, bytes]] = []
        self.reasons: set[str] = set()

    def judge(self, pack: MadePack, data: bytes) -> None:
        """Count the verdict on the mutant `data` of `pack`. Another exception than Refused is a bug."""
        self.made += 1
        try:
            hansa_verify.verify(data, pack.genesis, pack.checkpoint, pack.expect)
        except hansa_verify.Refused as refusal:
            self.refused += 1
            self.other_claim += str(refusal).startswith("the pack proves ")
            self.reasons.add("".join(letter for letter in str(refusal) if not letter.isdigit())[:40])
        else:
            self.accepted.append((pack.name, data))


def run(packs: list[MadePack], mutants: int, seed: int) -> dict[str, Tally]:
    """Judge `mutants` mutants of `packs`, as many of each way and, within it, of each pack."""
    forger = Forger(packs, seed)
    tallies = {name: Tally() for name in WAYS}
    turn = 0
    while sum(tally.made for tally in tallies.values()) < mutants:
        name = list(WAYS)[turn % len(WAYS)]
        pack = packs[turn // len(WAYS) % len(packs)]
        turn += 1
        data = WAYS[name](forger, pack)
        if data is not None and data != pack.data:
            tallies[name].judge(pack, data)
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """The verdicts by way, with totals."""
    lines = [f"{'mutation':28}{'mutants':>9}{'refused':>9}{'accepted':>9}{'other claim':>13}{'reasons':>9}"]
    for name, tally in tallies.items():
        lines.append(
            f"{name:28}{tally.made:>9}{tally.refused:>9}{len(tally.accepted):>9}{tally.other_claim:>13}"
            f"{len(tally.reasons):>9}"
        )
    made, refused = (sum(getattr(tally, name) for tally in tallies.values()) for name in ("made", "refused"))
    lines.append(f"{'all':28}{made:>9}{refused:>9}{made - refused:>9}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the table; return 0 when every mutant was refused."""
    parser = argparse.ArgumentParser(prog="scripts/mutate-evidence", description=__doc__)
    parser.add_argument("--packs", type=int, default=10_000, metavar="N", help="how many mutants (default 10000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with made_packs() as world:
        tallies = run(world.packs, options.packs, options.seed)
        kinds = {pack.kind for pack in world.packs}
        print(f"{len(world.packs)} good packs of {len(kinds)} kinds, seed {options.seed}")
    print(table(tallies))
    for name, tally in tallies.items():
        for pack, data in tally.accepted[:3]:
            print(f"ACCEPTED: {name}, of {pack}: {data.hex()}")
    return 1 if any(tally.accepted for tally in tallies.values()) else 0
