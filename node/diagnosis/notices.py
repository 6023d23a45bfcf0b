"""What the members have planned and stopped, in sentences."""

from collections.abc import Sequence

from node.client.answers import BrakeAnswer, RestAnswer
from node.diagnosis.wording import moment


def notices(resting: Sequence[RestAnswer], brakes: Sequence[BrakeAnswer]) -> tuple[str, ...]:
    """A sentence for each member that rests and for each thing that is stopped."""
    told = [
        f"{item.member} is in a maintenance window until {moment(item.until_ms)}: "
        + ("its turn as primary is skipped." if item.skipped else "too many rest, so its turn is not skipped.")
        for item in resting
    ]
    told += [
        f"An emergency brake stops {item.scope} {item.subject} until {moment(item.until_ms)}." for item in brakes
    ]
    return tuple(told)
