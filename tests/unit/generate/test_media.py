import base64
import struct
from typing import Any

import pytest

from kvant.errors import ApiError
from kvant.generate.media import (
    MAX_BYTES,
    MAX_PIXELS,
    Media,
    check_pixels,
    content_of,
    flattened,
    media_of,
    of_bytes,
    picture,
    sound,
)
from kvant.generate.turns import plainer
from kvant.testing.pictures import disc, wav


def _jpeg(width: int, height: int, *, before: bytes = b"", frame: int = 0xC0) -> bytes:
    head = struct.pack(">BHHB", 8, height, width, 3) + bytes(9)
    return b"\xff\xd8" + before + b"\xff" + bytes([frame]) + struct.pack(">H", len(head) + 2) + head + b"\xff\xd9"


_EXIF = b"\xff\xe1" + struct.pack(">H", 300) + b"Exif\0\0" + b"\xff\xc0" * 146
"""A segment that holds what looks like a frame."""

_BMP = b"BM" + bytes(12) + struct.pack("<Iii", 40, 30, -20) + bytes(30)


@pytest.mark.parametrize(
    ("data", "form", "pixels"),
    [
        (disc((9, 9, 9), 30, 20), "png", 600),
        (_jpeg(30, 20), "jpeg", 600),
        (_jpeg(30, 20, before=_EXIF, frame=0xC2), "jpeg", 600),
        (b"GIF89a" + struct.pack("<HH", 30, 20) + bytes(9), "gif", 600),
        (_BMP, "bmp", 600),
        (b"BM" + bytes(12) + struct.pack("<IHH", 12, 30, 20) + bytes(30), "bmp", 600),
    ],
)
def test_a_pictures_size_is_read_from_its_header(data: bytes, form: str, pixels: int) -> None:
    made = of_bytes("image", data, "x.png")
    assert made.pixels == pixels
    assert made["image_url"]["url"] == f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def test_a_data_url_is_taken_by_its_bytes_whatever_its_type_says() -> None:
    text = base64.b64encode(disc((9, 9, 9))).decode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    made = picture(f"data:image/svg+xml;charset=utf-8;base64,{wrapped}", "messages[0]")
    made.read()
    assert made["image_url"]["url"] == f"data:image/png;base64,{text}"


@pytest.mark.parametrize("frame", [0xC3, 0xC5, 0xC9, 0xCF])
def test_a_jpeg_that_the_engine_cannot_decode_has_no_size(frame: int) -> None:
    with pytest.raises(ApiError, match="ends before its size"):
        of_bytes("image", _jpeg(3, 3, frame=frame), "x.jpg")


@pytest.mark.parametrize("length", range(16, 29))
def test_a_png_that_ends_within_its_header_is_refused(length: int) -> None:
    with pytest.raises(ApiError, match=r"ends before its size|0 x 0 pixels"):
        of_bytes("image", disc((9, 9, 9))[:length], "x.png")


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff" + b"\xff" * 5000, b"\xff\xd8\xff\xe0\x00", b"\xff\xd8" + b"\xff\x01" * 900]
)
def test_a_jpeg_without_a_frame_ends(data: bytes) -> None:
    with pytest.raises(ApiError, match=r"ends before its size|unknown format"):
        of_bytes("image", data, "x.jpg")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (wav(0.01, 2000), "2000 samples per second"),
        (wav()[:12] + bytes(60), "format is not told"),
        (b"fLaC" + bytes(60), "is FLAC"),
        (bytes(MAX_BYTES["audio"] + 1), "above the limit"),
    ],
)
def test_a_sound_that_is_not_taken(data: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        of_bytes("audio", data, "x.wav")


def test_sounds_that_are_taken() -> None:
    made = sound(base64.b64encode(wav()).decode(), "messages[0]")
    made.read()
    assert made["input_audio"]["format"] == "wav"
    assert of_bytes("audio", b"ID3" + bytes(60), "x.mp3")["input_audio"]["format"] == "mp3"


def test_an_address_is_noted_and_only_where_one_may_stand() -> None:
    made = picture("HTTPS://example.com/x.png", "messages[0]")
    made.read()
    assert made.url == "HTTPS://example.com/x.png"
    for given in (
        picture("https://example.com/x.png", "images[0]", plain=True),
        sound("http://x/y.wav", "messages[0]"),
    ):
        with pytest.raises(ApiError, match="is not taken"):
            given.read()


def test_pixels_of_all_pictures_count() -> None:
    half = of_bytes("image", _jpeg(MAX_PIXELS // 2000, 1200), "x.jpg")
    check_pixels([half])
    with pytest.raises(ApiError, match="pixels together"):
        check_pixels([half, half])


def test_contents_without_pictures_stay_texts() -> None:
    eye = of_bytes("image", disc((9, 9, 9)), "x.png")
    assert content_of(["a", "b"]) == "a\nb"
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": content_of(["a", eye, "b"])},
        {"role": "user", "content": "c"},
    ]
    assert media_of(messages) == [eye]
    assert [message["content"] for message in flattened(messages, "<m>")] == ["a<m>b", "c"]
    joined = plainer(messages)
    assert joined is not None
    assert joined[0]["content"] == [{"type": "text", "text": "a"}, eye, {"type": "text", "text": "b"},
                                    {"type": "text", "text": "c"}]  # fmt: skip
    assert isinstance(joined[0]["content"][1], Media)
