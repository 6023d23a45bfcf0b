"""Numbers as options of the scripts' commands: what is none is refused in words that name what was wanted."""

import click


class Whole(click.IntRange):
    """A whole number in a range; click's own calls it an integer range, and refuses "x" as none of those."""

    name = "whole number"


class Number(click.FloatRange):
    """A number in a range, with or without a fraction."""

    name = "number"
