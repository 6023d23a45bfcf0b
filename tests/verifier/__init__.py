"""The stand-alone verifier, judged with packs that a real ledger made."""
