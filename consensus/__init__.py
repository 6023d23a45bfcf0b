"""PBFT among known members, as a state machine without input or output of its own."""
