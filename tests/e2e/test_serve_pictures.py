"""Pictures through every API, by the official clients, to a tiny random model with real eyes; and what is refused."""

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import numpy as np
import ollama
import openai
import pytest

from kvant.generate.media import MAX_MEDIA, MAX_PIXELS
from kvant.testing.pictures import disc, png, wav, write_tiny_ears, write_tiny_projector
from served import Served, served, write_gguf

pytestmark = pytest.mark.heavy
RED, GREEN = disc((255, 0, 0)), disc((0, 160, 0))
SAY = "What is it?"
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("models")
    write_gguf(root / "eyes.gguf", tokenizer="pictures")
    write_tiny_projector(root / "mmproj-eyes-F16.gguf")
    (root / "ears").mkdir()
    write_gguf(root / "ears" / "hearing.gguf", tokenizer="pictures")
    write_tiny_ears(root / "ears" / "mmproj-hearing-F16.gguf")
    (root / "blind").mkdir()
    write_gguf(root / "blind" / "text.gguf", seed=1)
    with served(root, context=1024) as running:
        yield running


@pytest.fixture
def http(gateway: Served) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=gateway.url, timeout=120) as client:
        yield client


def data_url(picture: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(picture).decode()}"


def chat(http: httpx2.Client, url: str, *, model: str = "eyes", **more: Any) -> httpx2.Response:
    content = [{"type": "text", "text": SAY}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0}
    return http.post("/v1/chat/completions", json=body | more)


def said(http: httpx2.Client, picture: bytes, **more: Any) -> str:
    answer = chat(http, data_url(picture), **more)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_each_api_answers_by_what_the_picture_shows(gateway: Served, http: httpx2.Client) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:

        def by_chat(picture: bytes) -> Any:
            content: Any = [
                {"type": "text", "text": SAY}, {"type": "image_url", "image_url": {"url": data_url(picture)}}
            ]  # fmt: skip
            made = client.chat.completions.create(
                model="eyes", messages=[{"role": "user", "content": content}], max_tokens=6, temperature=0
            )
            return made.choices[0].message.content

        def by_responses(picture: bytes) -> Any:
            content: Any = [
                {"type": "input_text", "text": SAY},
                {"type": "input_image", "image_url": data_url(picture), "detail": "auto"},
            ]
            return client.responses.create(
                model="eyes", input=[{"role": "user", "content": content}], max_output_tokens=6, temperature=0
            ).output_text

        for ask in (by_chat, by_responses):
            assert ask(RED) == ask(RED) != ask(GREEN)
            assert ask(RED) == said(http, RED)

    with anthropic.Anthropic(base_url=gateway.url, api_key="none", max_retries=0) as clause:

        def by_messages(picture: bytes) -> Any:
            source: Any = {
                "type": "base64", "media_type": "image/png", "data": base64.b64encode(picture).decode()
            }  # fmt: skip
            content: Any = [{"type": "text", "text": SAY}, {"type": "image", "source": source}]
            asked: Any = [{"role": "user", "content": content}]
            counted = clause.messages.count_tokens(model="eyes", messages=asked)
            made = clause.messages.create(model="eyes", messages=asked, max_tokens=6, extra_body=GREEDY)
            assert counted.input_tokens == made.usage.input_tokens + (made.usage.cache_read_input_tokens or 0)
            return made.content[0].text  # type: ignore[union-attr]

        assert by_messages(RED) == said(http, RED)
        assert by_messages(RED) != by_messages(GREEN)

    client2 = ollama.Client(host=gateway.url)
    options = {"num_predict": 6, "temperature": 0}

    def by_ollama(picture: bytes) -> str:
        message = {"role": "user", "content": SAY, "images": [picture]}
        return str(client2.chat("eyes", [message], options=options).message.content)

    def by_generate(picture: bytes) -> str:
        return str(client2.generate("eyes", SAY, images=[picture], options=options).response)

    for of_ollama in (by_ollama, by_generate):
        assert of_ollama(RED) == of_ollama(RED) != of_ollama(GREEN)
    client2._client.close()


def test_a_model_with_a_projector_says_that_it_sees(http: httpx2.Client) -> None:
    shown = http.post("/api/show", json={"model": "eyes"}).json()
    assert "vision" in shown["capabilities"]
    assert shown["projector_info"]["clip.projector_type"] == "idefics3"
    assert "vision" not in http.post("/api/show", json={"model": "blind/text"}).json()["capabilities"]
    listed = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert set(listed) == {"eyes", "blind/text", "ears/hearing"}  # projectors are no models
    assert "vision" in listed["eyes"]["capabilities"]
    cards = {card["name"]: card for card in http.get("/api/kvant/cards").json()["cards"]}
    assert "vision" in cards["eyes"]["capabilities"]


def test_a_model_without_a_projector_says_what_to_do(http: httpx2.Client) -> None:
    answer = chat(http, data_url(RED), model="blind/text")
    assert answer.status_code == 400
    assert "blind/text does not support images" in answer.json()["error"]["message"]
    assert "mmproj-*.gguf" in answer.json()["error"]["message"]
    image = base64.b64encode(RED).decode()
    answer = http.post("/api/generate", json={"model": "blind/text", "prompt": SAY, "images": [image]})
    assert answer.status_code == 400
    assert "does not support images" in answer.json()["error"]


def test_a_picture_stands_beside_tools_formats_and_control_tokens(http: httpx2.Client) -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
              "required": ["colour"], "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    answer = json.loads(said(http, RED, response_format=wanted, max_tokens=60))
    assert answer["colour"] in ("red", "green")
    content = [{"type": "text", "text": "Is it <|im_end|> red?"}, {"type": "image_url", "image_url": data_url(RED)}]
    body = {"model": "eyes", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    system = {"role": "system", "content": "Be brief."}
    messages = [system, {"role": "user", "content": "Hello"}, {"role": "user", "content": content}]
    assert http.post("/v1/chat/completions", json=body | {"messages": messages}).status_code == 200


def test_a_result_of_a_tool_may_be_a_picture(http: httpx2.Client) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(RED).decode()}
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image", "source": source}]}
    messages = [
        {"role": "user", "content": SAY}, {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]  # fmt: skip
    answer = http.post("/v1/messages", json={"model": "eyes", "messages": messages, "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["input_tokens"] > 40


def _huge(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + bytes(4) + bytes(64)


def _bomb() -> bytes:
    small = png(np.zeros((8, 8, 3), np.uint8))
    packed = zlib.compress(bytes(64 << 20), 9)
    at = small.index(b"IDAT") - 4
    return small[:at] + struct.pack(">I", len(packed)) + b"IDAT" + packed + bytes(4) + small[-12:]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (_huge(100_000, 100_000), "100000 x 100000 pixels are above the limit"),
        (_huge(0, 5), "which is none"),
        (RED[:20], "ends before its size is told"),
        (RED[:-40], "damaged"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG, which the engine does not decode"),
        (b"<html><script>alert(1)</script>", "is HTML"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(40), "WebP"),
        (b"\xff\xd8\xff\xe0" + b"\xff" * 300, "ends before its size is told"),
        (b"BM" + bytes(16), "BMP"),
        (b"", "is empty"),
        (_bomb(), "unpacks to more than its size tells"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_and_the_engine_stays(
    gateway: Served, http: httpx2.Client, picture: bytes, words: str
) -> None:
    said(http, RED)
    [before] = [model.pid for model in gateway.loaded() if model.file.name == "eyes"]
    answer = chat(http, data_url(picture))
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    [after] = [model.pid for model in gateway.loaded() if model.file.name == "eyes"]
    assert after == before


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png," + "a" * 20, "without base64"),
        ("data:image/png;base64,****", "is no base64"),
        ("file:///etc/passwd", "kind 'file' is not taken"),
        ("gopher://127.0.0.1/x", "kind 'gopher' is not taken"),
        ("http://127.0.0.1/x.png", "not fetched here"),
        ("aGVsbG8=", "neither a data URL nor an address"),
        ("data:image/png;base64," + "A" * (30 << 20), "above the limit of"),
    ],
)  # fmt: skip
def test_an_address_that_is_not_taken_says_why(http: httpx2.Client, url: str, words: str) -> None:
    answer = chat(http, url)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_many_pictures_are_bounded_by_number_and_pixels(http: httpx2.Client) -> None:
    def ask(pictures: list[bytes]) -> httpx2.Response:
        content = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in pictures]
        return http.post(
            "/v1/chat/completions", json={"model": "eyes", "messages": [{"role": "user", "content": content}]}
        )

    many = ask([disc((1, 2, 3), 8, 8)] * 100)
    assert many.status_code == 400
    assert f"above the limit of {MAX_MEDIA}" in many.json()["error"]["message"]
    side = int(MAX_PIXELS**0.5) // 2 + 1
    large = ask([_huge(side, side)] * 5)
    assert large.status_code == 400
    assert "pixels together" in large.json()["error"]["message"]
    none_of_ollama = {"model": "eyes", "messages": [{"role": "user", "content": SAY, "images": ["http://x/y.png"]}]}
    assert http.post("/api/chat", json=none_of_ollama).status_code == 400


def test_a_sound_is_refused_by_a_model_that_only_sees(http: httpx2.Client) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}}
    body = {"model": "eyes", "messages": [{"role": "user", "content": [sound]}]}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "eyes does not support audio: its projector idefics3 is not for that" in answer.json()["error"]["message"]


def test_addresses_that_are_allowed_must_be_public(tmp_path: Path) -> None:
    write_gguf(tmp_path / "eyes.gguf", tokenizer="pictures")
    write_tiny_projector(tmp_path / "mmproj-eyes-F16.gguf")
    with (
        served(tmp_path, context=1024, allow_media_urls=True) as running,
        httpx2.Client(base_url=running.url, timeout=120) as http,
    ):
        for url in (f"{running.url}/x.png", "http://localhost/x", "http://[::1]/x", "http://169.254.169.254/latest",
                    "http://[::ffff:127.0.0.1]/x", "http://0.0.0.0/", "http://10.0.0.1/", "http://user:pw@1.1.1.1/",
                    "http://127.1/x", "http://0x7f000001/"):  # fmt: skip
            answer = chat(http, url)
            assert answer.status_code == 400, url
            message = answer.json()["error"]["message"]
            assert "not public" in message or "no plain address" in message or "cannot be fetched" in message, message


def sound(data: bytes, form: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def test_a_sound_is_heard_through_openai_s_chat(gateway: Served) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        [hearing] = [model for model in client.models.list() if model.id.endswith("hearing")]

        def by_chat(hertz: float) -> Any:
            content: Any = [{"type": "text", "text": SAY}, sound(wav(seconds=28, hertz=hertz))]
            return client.chat.completions.create(
                model=hearing.id, messages=[{"role": "user", "content": content}], max_tokens=6, temperature=0
            )

        low = by_chat(220)
        assert low.usage.prompt_tokens > 700
        assert low.choices[0].message.content != by_chat(3000).choices[0].message.content
    assert hearing.model_extra is not None
    assert "audio" in str(hearing.model_extra)


@pytest.mark.parametrize(
    ("data", "form", "words"),
    [(b"fLaC" + bytes(99), "flac", "is FLAC, which is not taken"), (RED, "wav", "a picture (PNG), which is not taken"),
     (wav()[:30], "wav", "WAV")],
)  # fmt: skip
def test_sounds_that_the_engine_does_not_take_are_refused(
    http: httpx2.Client, data: bytes, form: str, words: str
) -> None:
    content = [{"type": "text", "text": SAY}, sound(data, form)]
    body = {"model": "ears/hearing", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
