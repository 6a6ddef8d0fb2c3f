"""A side for each group, by hash alone: a row never changes sides."""

from hashlib import sha256

from app.specs.conversation import Split


def side(group: str, validation_share: float, test_share: float) -> Split:
    """Give the split of `group`; shares are fractions of the groups."""
    at = int.from_bytes(sha256(group.encode()).digest()[:8], "big") / 2**64
    if at < test_share:
        return "test"
    return "validation" if at < test_share + validation_share else "train"
