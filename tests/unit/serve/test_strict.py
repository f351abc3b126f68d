"""What a front and we could read otherwise is refused; what clients send is not."""

import h11
import pytest

from kvant.serve.strict import FREE_FRAMING_BYTES, MAX_HEAD_BYTES, StrictConnection

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


def read(data: bytes, step: int, connection: StrictConnection | None = None) -> tuple[list[bytes], bytes]:
    """Feed bytes in pieces of a size; return the targets of the requests and all that was in bodies."""
    connection = connection or StrictConnection()
    targets, body = [], bytearray()
    for start in range(0, len(data), step):
        connection.receive_data(data[start : start + step])
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Request):
                targets.append(event.target)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                answer = h11.Response(status_code=200, headers=[("content-length", "0")])
                connection.send(answer)
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
    return targets, bytes(body)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n" * 3, ([b"/a"] * 3, b"")),
        (POST + b"Content-Length: 4\r\nX: a \t b\r\n\r\n \r\n\nGET /b HTTP/1.1\r\nHost: x\r\n\r\n",
         ([b"/", b"/b"], b" \r\n\n")),
        (CHUNKED + b"3\r\nabc\r\n2;x=y\r\n\n\r\r\n0\r\n\r\n", ([b"/"], b"abc\n\r")),
        (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", ([b"/"], b"ok")),
        (POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok", ([b"/"], b"ok")),
    ],
)  # fmt: skip
def test_what_clients_send_is_read_whole_however_it_arrives(
    data: bytes, expected: tuple[list[bytes], bytes], step: int
) -> None:
    if b"Upgrade" in data:
        connection = StrictConnection()
        connection.receive_data(data)
        assert isinstance(connection.next_event(), h11.Request)
        return
    assert read(data, step) == expected


@pytest.mark.parametrize("step", [1, 1 << 20])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: x\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\n\n", 400), (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA:\r\n\tc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (POST + b"Content-Length: 1, 2\r\n\r\nab", 400), (POST + b"Content-Length: +1\r\n\r\na", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400), (POST + b"Content-Length: 0x1\r\n\r\na", 400),
        (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400), (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nOrigin: a\r\nOrigin: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Api-Key: a\r\nx-api-key: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x01\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505), (b"GET /\x80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (CHUNKED + b"1\r\na\r\n0\n\r\n", 400), (CHUNKED + b"1\na\r\n0\r\n\r\n", 400),
        (CHUNKED + b"0\r\n\n", 400), (CHUNKED + b"0\r\nA: b\r\n\r\n", 400), (CHUNKED + b"0\r\nA: b\n\n", 400),
        (CHUNKED + b"1\r\nab\r\n0\r\n\r\n", 400), (CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n", 400),
        (CHUNKED + b"-1\r\na\r\n", 400), (CHUNKED + b"0x1\r\na\r\n", 400), (CHUNKED + b"f" * 21 + b"\r\n", 400),
    ],
)  # fmt: skip
def test_what_two_readers_read_differently_is_refused(data: bytes, status: int, step: int) -> None:
    connection = StrictConnection()
    with pytest.raises(h11.RemoteProtocolError):
        read(data, step, connection)
    assert connection.refusal[0] == status


@pytest.mark.parametrize(("chunk", "overhead"), [(b"1\r\na\r\n", 5), (b"1;" + b"e" * 1000 + b"\r\na\r\n", 1006)])
def test_framing_that_costs_more_than_it_carries_ends(chunk: bytes, overhead: int) -> None:
    enough = FREE_FRAMING_BYTES // overhead - 1
    targets, body = read(CHUNKED + chunk * enough + b"0\r\n\r\n", 4096)
    assert (targets, len(body)) == ([b"/"], enough)
    with pytest.raises(h11.RemoteProtocolError, match="too small"):
        read(CHUNKED + chunk * (2 * enough), 4096)


def test_chunks_of_usual_sizes_may_go_on_for_ever() -> None:
    data = CHUNKED + (b"a0\r\n" + bytes(160) + b"\r\n") * 20_000 + b"0\r\n\r\n"
    assert len(read(data, 1 << 16)[1]) == 160 * 20_000
