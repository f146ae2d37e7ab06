"""Seeds that depend on what is drawn, not on when or where."""

import hashlib
import json


def seed_of(*parts: str | int) -> int:
    """Return 31 bits of a hash of all parts, in order."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
