"""HTTP/1.1 read strictly: what a proxy in front could read otherwise than we do is refused, and so is what only costs.

h11 reads with the generosity of older standards: a bare LF ends a line, a header goes on in a line that begins with
white space, Transfer-Encoding wins over Content-Length, chunks have extensions of any length. Where a proxy takes the
other reading, a request can be hidden in another one's body (RFC 9112, section 11.2). `test_strict.py` shows each.
"""

import re

import h11

MAX_HEAD_BYTES = 32 << 10
MAX_TARGET_BYTES = 8 << 10
MAX_HEADERS = 100
# A chunk of one byte takes six on the wire, and the time of one of a million.
FREE_FRAMING_BYTES = 16 << 10
FRAMING_PART = 16
"""Sizes of chunks may take a sixteenth of what is in them, beyond `FREE_FRAMING_BYTES`."""

SINGLE = frozenset({b"host", b"origin", b"authorization", b"x-api-key", b"content-type", b"transfer-encoding"})
"""Headers that decide something; of two of them, somebody else may take the other one."""

_LAST_CHUNK_BYTES = 64
_ODD_LINE = re.compile(rb"(?<!\r)\n|\r[^\n]|\r\n[ \t]")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class StrictConnection(h11.Connection):
    """A server's side of a connection; errors are `h11.RemoteProtocolError`.

    Attributes:
        refusal: Status and words of the error, once there was one.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self.refusal = (400, "This is not HTTP/1.1 as RFC 9112 has it.")
        self._looked_at = 0
        self._framing_bytes = self._body_bytes = 0

    # h11 offers no way to look at bytes before they are read, except copies of all of them.
    @property
    def _bytes(self) -> bytearray:
        return self._receive_buffer._data

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """See `h11.Connection.next_event`."""
        state = self.their_state
        if state is h11.IDLE:
            self._check_lines()
        before, last = len(self._bytes), bytes(self._bytes[:_LAST_CHUNK_BYTES])
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if error.error_status_hint != 400:
                self.refusal = (error.error_status_hint, "This request is beyond what HTTP asks a server to take.")
            raise
        if isinstance(event, h11.Request):
            self._check_request(event)
            self._looked_at = self._framing_bytes = self._body_bytes = 0
        elif state is h11.SEND_BODY:
            self._check_body(event, before - len(self._bytes), last)
        return event

    def _refuse(self, status: int, words: str) -> h11.RemoteProtocolError:
        self.refusal = (status, words)
        return h11.RemoteProtocolError(words, error_status_hint=status)

    def _check_lines(self) -> None:
        """Look at the lines of a head, each byte once, before h11 joins and splits them in its own way."""
        data = self._bytes
        end = data.find(b"\r\n\r\n", max(0, self._looked_at - 3))
        odd = _ODD_LINE.search(data, max(0, self._looked_at - 2), len(data) if end < 0 else end + 2)
        if (len(data) if end < 0 else end) > MAX_HEAD_BYTES:
            raise self._refuse(431, f"The headers are above the limit of {MAX_HEAD_BYTES} bytes.")
        if odd:
            raise self._refuse(400, "A line of the header ends in a bare LF or CR, or goes on in the next one.")
        self._looked_at = len(data)

    def _check_request(self, request: h11.Request) -> None:
        names = [name for name, _ in request.headers]
        if len(request.target) > MAX_TARGET_BYTES:
            raise self._refuse(414, f"The URL is above the limit of {MAX_TARGET_BYTES} bytes.")
        if len(names) > MAX_HEADERS:
            raise self._refuse(431, f"There are more than {MAX_HEADERS} headers.")
        if request.http_version not in (b"1.0", b"1.1"):
            raise self._refuse(505, "This gateway speaks HTTP/1.1.")
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            raise self._refuse(400, "Transfer-Encoding comes with Content-Length or in HTTP/1.0. Send one of them.")
        twice = next((name for name in SINGLE if names.count(name) > 1), None)
        if twice:
            raise self._refuse(400, f"The header {twice.decode()} is there twice. Send it once.")
        if any(_CONTROL.search(value) for _, value in request.headers):
            raise self._refuse(400, "A header holds control characters.")

    def _check_body(self, event: object, consumed: int, start: bytes) -> None:
        """Bound what chunks cost, and let a body end in one way only: no trailers, no bare LF."""
        if isinstance(event, h11.Data):
            self._body_bytes += len(event.data)
            consumed -= len(event.data)
        elif isinstance(event, h11.EndOfMessage) and consumed and (event.headers or not _is_plain(start[:consumed])):
            raise self._refuse(400, "The body's last chunk is not 0 and an empty line; trailers are not taken.")
        self._framing_bytes += consumed
        if self._framing_bytes > FREE_FRAMING_BYTES + self._body_bytes // FRAMING_PART:
            raise self._refuse(400, "The body's chunks are too small, or their extensions too long. Send larger ones.")


def _is_plain(end: bytes) -> bool:
    """Whether what h11 took for the end of a chunked body is one; its size may have come, and gone, before."""
    return end == b"\r\n" or end.endswith(b"\r\n\r\n")
