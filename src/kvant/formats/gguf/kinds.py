"""What a GGUF file is: not every one is a model."""

from collections.abc import Collection

from kvant.errors import UnsupportedFormatError, UnsupportedModelError
from kvant.model import Model

MODEL, PROJECTOR = "model", "mmproj"

CLIP = "clip"
"""Architecture of projectors, also of those made before `general.type` said so."""

_INSTEAD = {
    "imatrix": "an importance file, not a model. Give it with --imatrix, beside the model it was measured on.",
    "adapter": (
        "a LoRA adapter, not a model. Merge it into its base first (llama-export-lora --lora FILE -m BASE), or in "
        "Python with peft's merge_and_unload(), and give the result."
    ),
    PROJECTOR: "a projector of pictures or sounds (mmproj), a companion of a language model. Give the language model.",
}
"""By `general.type`. Source: gguf-py `constants.py`, `GGUFType`."""


ENCODERS = frozenset({
    "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
    "gemma-embedding", "t5encoder",
})  # fmt: skip
"""Architectures that only read: what they make of a text is vectors. Source: llama.cpp `llama-model.cpp`
(`create_memory`), b11549."""

_POOLED = (1, 2, 3)
"""Of `pooling_type`: the mean, the first and the last token's vector stand for a text; 4 is a reranker's score."""

_NO_ANSWER = {
    "t5": "reads a text with an encoder before its decoder writes, which is not run here. Use llama.cpp's llama-cli.",
    "dream": "writes by diffusion, not token by token. Use llama.cpp's llama-diffusion-cli.",
    "llada": "writes by diffusion, not token by token. Use llama.cpp's llama-diffusion-cli.",
    "llada-moe": "writes by diffusion, not token by token. Use llama.cpp's llama-diffusion-cli.",
    "rnd1": "writes by diffusion, not token by token. Use llama.cpp's llama-diffusion-cli.",
    "wavtokenizer-dec": "makes sound of codes, no text. Use llama.cpp's llama-tts.",
}
"""Architectures that write no text token by token, though they are no encoders."""


RANK = 4
"""Of `pooling_type`: a score stands for a pair of texts."""

HEADS = ("cls.weight", "cls.output.weight")
"""Tensors that make scores of what an encoder read."""

RERANKS = (
    "scores how well documents answer a query (a reranker), and writes no text. Serve it with kvant serve "
    "(/v1/rerank); compare variants with kvant evaluate."
)


def reranks(model: Model) -> bool:
    """Whether a model scores pairs of a query and a document: by its pooling, or by an encoder's head for one score.

    Heads of several labels (sentiments, entailment) are no rerankers'; the vectors of such an encoder can be had.
    """
    if model.get(f"{model.architecture}.pooling_type") == RANK:
        return True
    head = next((model.tensors[name] for name in reversed(HEADS) if name in model.tensors), None)
    return model.architecture in ENCODERS and head is not None and (head.name == HEADS[0] or head.shape[0] == 1)


def makes_vectors(model: Model) -> bool:
    """Whether a model is made for vectors of texts: an encoder, or one that names how its vectors are pooled."""
    if reranks(model):
        return False
    return model.architecture in ENCODERS or model.get(f"{model.architecture}.pooling_type") in _POOLED


def check_generates(model: Model) -> None:
    """Refuse a model that writes no text.

    Raises:
        UnsupportedModelError: It does not; the message says what it does.
    """
    if reranks(model):
        raise UnsupportedModelError(f"{model.path}: {RERANKS}")
    if model.architecture in ENCODERS:
        raise UnsupportedModelError(
            f"{model.path}: {model.architecture} makes vectors of texts and writes none. Serve it with kvant serve "
            "(/v1/embeddings); measure it with kvant evaluate."
        )
    if model.architecture in _NO_ANSWER:
        raise UnsupportedModelError(f"{model.path}: {model.architecture} {_NO_ANSWER[model.architecture]}")


def kind_of(model: Model) -> str:
    """Return what `general.type` says, or what the tensors do where it is silent: `model` as a rule."""
    kind = model.get("general.type")
    if isinstance(kind, str) and kind in _INSTEAD:
        return kind
    if model.architecture == CLIP:
        return PROJECTOR
    if model.tensors and all(name.endswith((".lora_a", ".lora_b")) for name in model.tensors):
        return "adapter"
    if model.tensors and all(name.endswith((".in_sum2", ".counts")) for name in model.tensors):
        return "imatrix"
    return MODEL


def check_kind(model: Model, kinds: Collection[str] = (MODEL,)) -> None:
    """Refuse a GGUF that is none of the kinds that can be used.

    Raises:
        UnsupportedFormatError: It is something else; the message says what that is for.
    """
    kind = kind_of(model)
    if kind not in kinds:
        raise UnsupportedFormatError(f"{model.path}: is {_INSTEAD.get(kind, f'of the kind {kind}, no model.')}")
