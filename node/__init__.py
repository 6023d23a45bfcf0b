"""The daemon: everything with a clock, a socket or a disk."""
