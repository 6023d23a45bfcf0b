"""Why blocks are made or not made: a pure judgement over facts, in plain words, with stable causes."""

from node.diagnosis.answer import Judgement, diagnose, judge
from node.diagnosis.causes import CAUSES, cause_table
from node.diagnosis.facts import Facts, Heard, Link, Pause

__all__ = ["CAUSES", "Facts", "Heard", "Judgement", "Link", "Pause", "cause_table", "diagnose", "judge"]
