"""A side for each group of conversations, by its hash alone: a row never changes sides."""

from hashlib import blake2b

from app.specs.conversation import Split


def side(group: str, *, validation_share: float, test_share: float) -> Split:
    """Return the split of a group; shares are fractions of all groups.

    A larger share only adds groups to it: test grows from 0, validation from the top.
    """
    digest = blake2b(group.encode(), digest_size=8, person=b"split").digest()
    at = int.from_bytes(digest) / 2**64
    if at < test_share:
        return "test"
    return "validation" if at >= 1 - validation_share else "train"
