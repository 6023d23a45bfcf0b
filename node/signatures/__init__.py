"""Judging signatures: whether one verifies (verifying.py), and many of them in a process of its own (apart.py)."""

from node.signatures.verifying import PUBLIC_KEY_SIZE, SIGNATURE_SIZE, Signed, verify, verify_many

__all__ = ["PUBLIC_KEY_SIZE", "SIGNATURE_SIZE", "Signed", "verify", "verify_many"]
