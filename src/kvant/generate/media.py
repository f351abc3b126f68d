"""Pictures and sounds in messages: what they are is read from their first bytes, and decoded nowhere but in the engine.

A part of a message that is no text is a `Media`. The engine decodes PNG, JPEG, GIF and BMP with stb_image, and WAV and
MP3 with miniaudio; what else it would hand to another program is refused here. Sizes come from headers, so that nothing
is decoded that would take more memory than a picture may.

Source: llama.cpp `tools/mtmd/mtmd-helper.cpp` (`mtmd_helper_bitmap_init_from_buf`); PNG 3rd edition §11.2.1; ITU-T T.81
Annex B; GIF89a §18; BITMAPINFOHEADER; RIFF WAVE.
"""

import base64
import binascii
import struct
from collections.abc import Callable, Iterable
from typing import Any, Literal

from kvant.errors import ApiError
from kvant.runtime.plaintext import Trusted
from kvant.units import format_bytes

MAX_PIXELS = 40_000_000
"""Pixels of all pictures of a request together; the engine holds three bytes of each at once."""

MAX_MEDIA = 32
"""Pictures and sounds of a request."""

SAMPLE_RATES = range(4_000, 192_001)
"""A sound is brought to the model's rate, which makes a slow one longer."""

PCM = {1: "integers", 3: "floats", 0xFFFE: "either"}
"""Formats of WAV samples that are taken."""

Kind = Literal["image", "audio"]
MAX_BYTES: dict[Kind, int] = {"image": 20 << 20, "audio": 10 << 20}
WORDS: dict[Kind, str] = {"image": "picture", "audio": "sound"}


class Media(Trusted):
    """A part of a message that is a picture or a sound, in OpenAI's form; its base64 spells no control token.

    Attributes:
        kind: `image` or `audio`.
        where: The field it came in.
        given: What was sent for it, until it is looked at.
        plain: Whether that is base64, and may be no address.
        base64: Its bytes; empty for one that is yet to be looked at or fetched.
        pixels: Of a picture.
        url: Where it is to be fetched from, if it did not come with the request.
        packed: Of a PNG, its bytes and the most that they may unpack to.
    """

    kind: Kind
    where: str
    given: str = ""
    plain: bool = True
    base64: str = ""
    pixels: int = 0
    url: str | None = None
    packed: tuple[bytes, int] | None = None

    def read(self) -> None:
        """Look at what was sent: take its bytes, or note its address in `url`.

        Raises:
            ApiError: It is neither base64 nor an address, or none that the engine decodes; see `take`.
        """
        given, self.given = self.given, ""
        scheme, colon, rest = given[:4096].partition(":")
        if colon and scheme.lower() in ("http", "https") and not self.plain:
            self.url = given
            return
        if colon and scheme.lower() != "data":
            raise self.wrong(f"an address of the kind {scheme[:20]!r} is not taken. Send a data URL with base64")
        if not colon and not self.plain:
            raise self.wrong("is neither a data URL nor an address. Write data:image/png;base64,...")
        head, comma, _ = rest.partition(",")
        if colon and (not comma or not head.lower().endswith(";base64")):
            raise self.wrong("a data URL without base64 is not taken. Write data:image/png;base64,...")
        text = given[given.index(",") + 1 :] if colon else given
        if len(text) > MAX_BYTES[self.kind] // 3 * 4 + 4096:
            raise self.too_large(len(text) // 4 * 3)
        text = "".join(text.split())
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise self.wrong("is no base64. Encode the file's bytes") from None
        self.take(data, text)

    def take(self, data: bytes, text: str) -> None:
        """Be a picture or a sound of these bytes, which `text` says in base64.

        Raises:
            ApiError: It is none that the engine decodes, is damaged, or is too large.
        """
        if len(data) > MAX_BYTES[self.kind]:
            raise self.too_large(len(data))
        form, self.pixels = _picture(data, self) if self.kind == "image" else (_sound(data, self), 0)
        self.base64, self.url = text, None
        self.packed = (data, _png_bytes(data)) if form == "png" else None
        if self.kind == "image":
            self["image_url"] = {"url": f"data:image/{form};base64,{text}"}
        else:
            self["input_audio"] = {"data": text, "format": form}

    def wrong(self, what: str, code: str = "invalid_media") -> ApiError:
        """Return the error for it."""
        return ApiError(f"{self.where}: {what}.", code=code, param=self.where.partition("[")[0])

    def too_large(self, n_bytes: int) -> ApiError:
        """Return the error for one of so many bytes."""
        word, most = WORDS[self.kind], format_bytes(MAX_BYTES[self.kind])
        what = f"a {word} of {format_bytes(n_bytes)} is above the limit of {most}. Send a smaller one"
        return self.wrong(what, "media_too_large")


def picture(given: str, where: str, *, plain: bool = False) -> Media:
    """Return a picture that a data URL or base64 holds, or an address names; it is looked at by `Media.read`.

    Args:
        given: As it was sent.
        where: The field, for errors.
        plain: Whether it is base64, and may be no address.
    """
    return _media("image", where, given, plain=plain)


def sound(given: str, where: str) -> Media:
    """Return a sound that base64 holds, likewise."""
    return _media("audio", where, given, plain=True)


def of_bytes(kind: Kind, data: bytes, where: str) -> Media:
    """Return a picture or a sound of a file's bytes; see `Media.take`."""
    made = _media(kind, where)
    made.take(data, base64.b64encode(data).decode())
    return made


def _media(kind: Kind, where: str, given: str = "", *, plain: bool = True) -> Media:
    made = Media(type="image_url" if kind == "image" else "input_audio")
    made.kind, made.where, made.given, made.plain = kind, where, given, plain
    return made


def media_of(messages: Iterable[dict[str, Any]]) -> list[Media]:
    """Return the pictures and sounds of a conversation, in order."""
    contents = (message.get("content") for message in messages)
    return [part for content in contents if isinstance(content, list) for part in content if isinstance(part, Media)]


def check_number(media: list[Media]) -> None:
    """Refuse a request with more pictures and sounds than one may have.

    Raises:
        ApiError: There are too many.
    """
    if len(media) > MAX_MEDIA:
        raise ApiError(
            f"messages: {len(media)} pictures and sounds are above the limit of {MAX_MEDIA}. Leave some out.",
            code="media_too_large", param="messages",
        )  # fmt: skip


def check_pixels(media: list[Media]) -> None:
    """Refuse pictures that have too many pixels together.

    Raises:
        ApiError: They have.
    """
    pixels = sum(part.pixels for part in media)
    if pixels > MAX_PIXELS:
        raise ApiError(
            f"messages: pictures of {pixels} pixels together are above the limit of {MAX_PIXELS}. Make them smaller.",
            code="media_too_large", param="messages",
        )  # fmt: skip


def content_of(parts: list[str | Media], between: str = "\n") -> str | list[dict[str, Any]]:
    """Return the content of a message: a text where there is nothing else, so that every template takes it."""
    if not any(isinstance(part, Media) for part in parts):
        return between.join(part for part in parts if isinstance(part, str))
    return [part if isinstance(part, Media) else {"type": "text", "text": part} for part in parts]


def flattened(messages: list[dict[str, Any]], marker: str) -> list[dict[str, Any]]:
    """Return messages for a template that takes texts alone: a marker stands for every picture and sound."""
    return [
        message | {"content": "".join(marker if isinstance(part, Media) else part["text"] for part in content)}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]  # fmt: skip


def _png_bytes(data: bytes) -> int:
    """Return the bytes that a PNG's pixels have before they are compressed, with the filter byte of each row."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4)
    rows = -(-width * channels * depth // 8) + 1
    return int(height * rows * (2 if interlaced else 1) + 64)


def _picture(data: bytes, part: Media) -> tuple[str, int]:
    """Return a picture's format and pixels."""
    found = next(((form, size) for begin, (form, size) in _PICTURES.items() if data.startswith(begin)), None)
    if found is None:
        raise part.wrong(f"is {_told(data)}, which the engine does not decode. Send PNG, JPEG, GIF or BMP")
    form, size = found
    try:
        width, height = size(data)
    except (struct.error, IndexError):
        raise part.wrong(f"is a {form.upper()} that ends before its size is told. Send the whole file") from None
    if width < 1 or height < 1:
        raise part.wrong(f"is a {form.upper()} of {width} x {height} pixels, which is none. Send another picture")
    if width * height > MAX_PIXELS:
        raise part.wrong(
            f"{width} x {height} pixels are above the limit of {MAX_PIXELS} in all. Make the picture smaller",
            "media_too_large",
        )
    return form, width * height


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        return 0, 0
    width, height, *_ = struct.unpack_from(">IIBBBBB", data, 16)  # to the end of the header, which `_png_bytes` reads
    return width, height


def _gif_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp_size(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return what the first frame header says, found as stb_image finds it: what is no marker is passed over."""
    at = 2
    while True:
        at = data.find(b"\xff", at)
        if at < 0:
            raise IndexError
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return width, height
        if marker in _BARE:
            continue
        at += max(2, struct.unpack_from(">H", data, at)[0])


_SOF = frozenset({0xC0, 0xC1, 0xC2})
"""Frames that stb_image decodes: baseline, extended and progressive."""

_BARE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
"""Markers without a length."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURES: dict[bytes, tuple[str, Callable[[bytes], tuple[int, int]]]] = {
    _PNG: ("png", _png_size), b"\xff\xd8\xff": ("jpeg", _jpeg_size), b"GIF87a": ("gif", _gif_size),
    b"GIF89a": ("gif", _gif_size), b"BM": ("bmp", _bmp_size),
}  # fmt: skip


def _sound(data: bytes, part: Media) -> str:
    """Return a sound's format."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        _check_wav(data, part)
        return "wav"
    if data.startswith(b"ID3") or (data[:1] == b"\xff" and data[1:2] in _MP3):
        return "mp3"
    raise part.wrong(f"is {_told(data)}, which is not taken. Send WAV or MP3")


_MP3 = tuple(bytes([second]) for second in (0xE2, 0xE3, 0xF2, 0xF3, 0xFA, 0xFB))
"""Second bytes of a frame of layer III: MPEG 2.5, 2 and 1, with a checksum and without."""


def _check_wav(data: bytes, part: Media) -> None:
    at = data.find(b"fmt ", 12, 4096)
    if at < 0 or len(data) < at + 24:
        raise part.wrong("is a WAV whose format is not told in its first 4096 bytes. Send the whole file")
    form, _, rate = struct.unpack_from("<HHI", data, at + 8)
    if form not in PCM or rate not in SAMPLE_RATES:
        raise part.wrong(f"is a WAV of format {form} with {rate} samples per second. Send PCM with 4,000 to 192,000")


_OTHERS = (
    (b"RIFF", "RIFF (WebP, WAV or AVI)"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"%PDF", "PDF"), (b"fLaC", "FLAC"),
    (b"OggS", "Ogg"), (b"\0\0\0", "HEIC, AVIF or MP4"), (b"<svg", "SVG"), (b"<?xml", "XML, as SVG is"), (b"<", "HTML"),
    (b"PK", "a ZIP archive"), (b"GGUF", "GGUF"), (b"\x89PNG", "a picture (PNG)"), (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"GIF8", "a picture (GIF)"), (b"ID3", "a sound (MP3)"),
)  # fmt: skip


def _told(data: bytes) -> str:
    """Say what bytes that are not taken may be."""
    begin = data[:64].lstrip()
    return next(
        (name for magic, name in _OTHERS if begin.startswith(magic)), "of an unknown format" if data else "empty"
    )
