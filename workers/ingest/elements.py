"""Cuts one giant JSON array, or JSON values without newlines, into its elements."""

import re
from collections.abc import Iterator

from workers.ingest.unpacking import Source

_TOKEN = re.compile(rb'[\[\]{},]|"[^"\\]*+(?:\\.[^"\\]*+)*+"|"', re.DOTALL)
_REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class Elements:
    """Finds elements by counting brackets outside of strings; holds one element at a time.

    Yields each element's bytes, or its first bytes and True when it is longer than `limit`.
    """

    def __init__(self, source: Source, limit: int, *, array: bool) -> None:
        self._source, self._limit, self._array = source, limit, array
        self._buffer = b""
        self._scanned = 0
        self._start = 0
        self._depth = 0
        self._opened = not array
        self._closed = False
        self._in_string = False
        self._oversize: bytes | None = None

    def __iter__(self) -> Iterator[tuple[bytes, bool]]:
        while not self._closed and (data := self._source.read()):
            self._buffer += data
            yield from self._scan()
            self._trim()
        yield from self._take(len(self._buffer))

    def _scan(self) -> Iterator[tuple[bytes, bool]]:
        if self._in_string and not self._skip_string():
            return
        while not self._closed and (match := _TOKEN.search(self._buffer, self._scanned)):
            token = match.group()
            if token == b'"':  # a string whose end has not been read yet
                self._scanned = match.start()
                return
            self._scanned = match.end()
            if len(token) == 1:
                yield from self._bracket(token, match.start(), match.end())
        if not self._closed:
            self._scanned = len(self._buffer)

    def _bracket(self, token: bytes, start: int, end: int) -> Iterator[tuple[bytes, bool]]:
        if token in b"[{":
            if not self._opened:
                self._opened, self._start = True, end
                return
            if self._depth == 0:
                yield from self._take(start)
            self._depth += 1
        elif token == b",":
            if self._depth == 0:
                yield from self._take(start)
                self._start = end
        elif self._depth:
            self._depth -= 1
            if self._depth == 0:
                yield from self._take(end)
        elif self._array:
            yield from self._take(start)
            self._start, self._closed = len(self._buffer), True

    def _take(self, end: int) -> Iterator[tuple[bytes, bool]]:
        """Give what lies between the last cut and `end`, unless it is blank."""
        element, self._start = self._buffer[self._start : end].strip(), end
        if self._oversize is not None:
            excerpt, self._oversize = self._oversize, None
            yield excerpt, True
        elif element:
            yield element, len(element) > self._limit

    def _trim(self) -> None:
        """Drop what was cut; of an element beyond the limit keep only its first bytes."""
        if len(self._buffer) - self._start > self._limit:
            if self._oversize is None:
                self._oversize = self._buffer[self._start : self._start + 1024]
            self._in_string = self._scanned < len(self._buffer)
            self._start = len(self._buffer)
            if self._in_string and self._buffer.endswith(b"\\"):
                slashes = len(self._buffer) - len(self._buffer.rstrip(b"\\"))
                self._start -= slashes % 2
            self._scanned = self._start
        self._buffer = self._buffer[self._start :]
        self._scanned -= self._start
        self._start = 0

    def _skip_string(self) -> bool:
        match = _REST_OF_STRING.match(self._buffer)
        if match is None:
            return False
        self._in_string = False
        self._scanned = match.end()
        return True
