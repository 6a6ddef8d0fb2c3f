"""Passwords and tokens."""

import threading

import pytest

from app.errors import InvalidInput
from app.security import passwords, tokens


def test_hash_uses_the_promised_parameters(quick_hash: str) -> None:
    assert quick_hash.startswith("$argon2id$v=19$m=47104,t=1,p=1$")
    assert passwords.verify(quick_hash, "correct horse battery")
    assert not passwords.verify(quick_hash, "correct horse batterx")
    assert not passwords.needs_rehash(quick_hash)


def test_unknown_name_costs_a_hash_and_never_passes() -> None:
    assert not passwords.verify(None, "nobody has this password")


def test_at_most_two_hashes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()
    both = threading.Event()

    class Slow:
        def hash(self, password: str) -> str:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 2:
                    both.set()
            both.wait(1)
            with lock:
                running -= 1
            return password

    monkeypatch.setattr(passwords, "_HASHER", Slow())
    threads = [threading.Thread(target=passwords.hash_password, args=("x",)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


@pytest.mark.parametrize(("password", "words"), [("short", "at least 12"), ("x" * 257, "at most")])
def test_length_is_checked_with_a_sentence(password: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        passwords.check_strength(password)
    assert words in caught.value.fields["password"]


def test_tokens_are_long_distinct_and_stored_as_digest() -> None:
    a, b = tokens.new_api_token(), tokens.new_api_token()
    assert a != b
    assert len(a) >= 43
    assert tokens.digest(a) != a
    assert len(tokens.digest(a)) == 64
    assert tokens.same(a, a)
    assert not tokens.same(a, b)
