"""One of a thing is told as one."""

from node.wording import agreeing, blocks_from, counted


def test_things_are_counted_as_people_count_them() -> None:
    assert [counted(number, "block") for number in (0, 1, 2, 2_400)] == [
        "0 blocks",
        "1 block",
        "2 blocks",
        "2,400 blocks",
    ]
    assert [agreeing(number, "was", "were") for number in (0, 1, 2)] == ["were", "was", "were"]
    assert (blocks_from(7, 7), blocks_from(7, 9)) == ("block 7", "blocks 7 to 9")
