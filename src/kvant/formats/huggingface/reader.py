"""Read a Hugging Face directory as a `Model`: weights mapped, translated as they are read; none of its code runs."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kvant.dtypes import BF16, F16, F32, BlockType
from kvant.errors import FormatError, UnsupportedFormatError, UnsupportedModelError
from kvant.formats.bounds import check_config
from kvant.formats.huggingface.adapters.merge import merged
from kvant.formats.huggingface.adapters.reader import Adapter
from kvant.formats.huggingface.architectures.biases import unused_biases
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.registry import family_of_config
from kvant.formats.huggingface.architectures.rope import check_rope
from kvant.formats.huggingface.architectures.shapes import check_alike, check_tensors, expert_count
from kvant.formats.huggingface.architectures.transforms import Transform
from kvant.formats.huggingface.checkpoint import check_adapter, plain_weights, weights_in_order
from kvant.formats.huggingface.config import Config, read_config, shown
from kvant.formats.huggingface.general import general_metadata
from kvant.formats.huggingface.lazy import as_float32, renamed, stacked
from kvant.formats.huggingface.mlx.layers import WEIGHT, dequantized, layer_bytes, layers_of, same_blocks
from kvant.formats.huggingface.mlx.schemes import Scheme, grouping_name, read_scheme
from kvant.formats.huggingface.naming import directory_identifier
from kvant.formats.huggingface.quantized.base import Layer
from kvant.formats.huggingface.quantized.schemes import Move, stored_as
from kvant.formats.huggingface.remarks import CODE, model_remarks
from kvant.formats.huggingface.tokenizer.keys import template_keys
from kvant.formats.huggingface.tokenizer.padding import pad_to_rows
from kvant.formats.huggingface.tokenizer.reader import describe, name_for_engine
from kvant.formats.huggingface.tokenizer.sources import read_tokenizer_files
from kvant.formats.safetensors.reader import left_over, weight_files
from kvant.formats.tied import HEAD, head_once
from kvant.metadata import Value, string, u32
from kvant.model import Model, Stored
from kvant.quant.roles import is_float32
from kvant.tensors import LazyTensor, Tensor, n_weights

FILE_TYPES: Mapping[BlockType, int] = {F32: 0, F16: 1, BF16: 32}
"""`general.file_type` of a model whose matrices are of one type. Source: llama.h `enum llama_ftype`."""

IGNORED_SUFFIXES = (
    ".attention.masked_bias", ".attention.bias", ".attn.masked_bias", ".attn.bias", ".rotary_emb.inv_freq",
)  # fmt: skip
"""Buffers of old checkpoints that are computed, not trained."""

ACTIVATIONS: Mapping[str, str] = {"swish": "silu", "gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}
"""Other names that transformers has for the same functions."""

NULLABLE = frozenset({"sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "q_lora_rank"})
"""Entries whose null is not the default but says that there is none."""


def read_huggingface(directory: Path, *, known_as: str = "", adapter: Adapter | None = None) -> Model:
    """Open a model directory with `config.json`, `*.safetensors` and a tokenizer; one that MLX quantized is decoded.

    Matrices keep their type (BF16 stays BF16); vectors are F32, as llama.cpp wants them. Query and key rows, norms and
    rotary factors are those of llama.cpp, in upstream's order of tensors.

    Args:
        directory: The model directory.
        known_as: Name that goes into metadata in place of the directory's.
        adapter: What is merged into the weights.

    Raises:
        FormatError: A file is missing, malformed, or does not fit the configuration.
        UnsupportedFormatError: The weights are pickles, an adapter's, or of a type that is no plain float.
        UnsupportedModelError: The architecture or tokenizer is not supported, or the model needs its own code.
    """
    directory = Path(directory)
    known_as = known_as or directory_identifier(directory)
    path = directory / "config.json"
    raw = read_config(directory)
    check_adapter(directory)
    family = family_of_config(raw, path)
    config = complete_config(raw, family, path)
    check_computed(config, family)
    plain = plain_weights(weights_in_order(directory), raw, directory)
    weights, remarks = plain.tensors, plain.remarks
    config = replace(config, values={**config.values, **family.seen(config, weights)})
    scheme = read_scheme(raw, layers_of(weights), str(path))
    stored = _stored(weights, scheme, family, config) if scheme else {}
    if scheme is not None:
        weights = dequantized(weights, scheme, str(directory))
    if adapter is not None:
        is_quantized = scheme is not None or bool(plain.layers)
        weights, merged_in = _with_adapter(weights, adapter, directory, is_quantized=is_quantized)
        remarks = (*remarks, merged_in)
    unused, without = unused_biases(weights, family, config)
    weights = {name: tensor for name, tensor in weights.items() if name not in unused}
    tensors = _by_name((*family.extra_tensors(config), *_canonical(weights, family, config)), directory)
    tensors, tied = _untied(tensors, config)
    if family.is_tied and HEAD in tensors:
        raise UnsupportedModelError(
            f"{directory}: has a head of its own, but llama.cpp's {family.architecture} takes the embedding as its "
            f"head. Such a model cannot be stored as GGUF."
        )
    stored |= _held(plain.layers, tensors, family, config)
    dropped: list[str] = []
    general = general_metadata(directory, raw, sum(n_weights(t) for t in tensors.values()), known_as=known_as)
    files = read_tokenizer_files(directory)
    tokenizer = describe(files, raw, dropped)
    general["general.name"] = string(name_for_engine(str(general["general.name"].value), files, tokenizer, dropped))
    tokenizer |= template_keys(family.templates)
    embedding = tensors.get("token_embd.weight")
    tokenizer = pad_to_rows(tokenizer, embedding.shape[0] if embedding is not None else 0, dropped)
    _check_vocabulary(tensors, tokenizer, directory)
    check_tensors(tensors, family, config)
    check_alike(tensors, family, config)
    hyperparameters = family.metadata(config)
    check_config(hyperparameters, config.path)
    metadata = {
        "general.architecture": string(family.architecture),
        "general.type": string("model"),
        **general,
        **hyperparameters,
        **_seen_context(family, config),
        **({} if stored else {"general.file_type": u32(_file_type(tensors.values()))}),
        "general.quantization_version": u32(2),
        **tokenizer,
    }
    if scheme is not None and isinstance(raw.get("kvant"), dict):
        metadata |= {f"kvant.{key}": string(str(value)[:200]) for key, value in raw["kvant"].items()}
    return Model(
        metadata=metadata, tensors=tensors, path=directory, known_as=known_as,
        files=(*_files(directory), *(adapter.files if adapter else ())),
        stored={name: how for name, how in stored.items() if name in tensors},
        remarks=(*left_over(directory), *remarks, *_other_parts(weights, family, config), *tied, *dropped,
            *without, *model_remarks(directory, raw, family, config),
        ),
        is_mended=bool(plain.is_renamed or adapter or tied or raw.get(CODE)),
    )  # fmt: skip


def _with_adapter(
    weights: Mapping[str, Tensor], adapter: Adapter, directory: Path, *, is_quantized: bool
) -> tuple[dict[str, Tensor], str]:
    if is_quantized:
        raise UnsupportedModelError(
            f"{directory}: its weights are quantized, and what an adapter adds would be lost in them. Give the "
            f"full-precision model that {adapter.path} was trained on."
        )
    return merged(weights, adapter)


def _seen_context(family: Family, config: Config) -> dict[str, Value]:
    """Return a context no longer than the window of attention that the engine does not have, where there is one."""
    window = family.unseen_window(config)
    if window is None or window >= config.integer("max_position_embeddings"):
        return {}
    return {f"{family.architecture}.context_length": u32(window)}


def complete_config(raw: Mapping[str, Any], family: Family, path: Path) -> Config:
    """Fill in what transformers assumes where config.json is silent."""
    raw = family.spelled(raw)
    defaults = {key: value for key, value in family.defaults.items() if key not in NULLABLE or key not in raw}
    if raw.get("rope_scaling"):
        defaults.pop("rope_parameters", None)
    values = {**defaults, **{key: value for key, value in raw.items() if value is not None}}
    config = Config(values=values, path=path)
    values.setdefault("num_key_value_heads", config.integer("num_attention_heads"))
    if family.computes_head_dim:
        values.setdefault("head_dim", config.head_dim)
    return Config(values={**values, **family.derived(config)}, path=path)


def _untied(tensors: dict[str, LazyTensor], config: Config) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
    """Settle what a tied model's stored head is: the embedding once more, or a head of its own."""
    if not config.flag("tie_word_embeddings") or HEAD not in tensors:
        return tensors, ()
    rest, remark = head_once(tensors)
    if remark:
        return rest, ("lm_head.weight equals the embedding that the model is tied to: it is written once.",)
    return rest, (
        "lm_head.weight differs from the embedding although tie_word_embeddings is true: it is kept, as in "
        "transformers, and what is written says false.",
    )


def check_computed(config: Config, family: Family) -> None:
    """Refuse a configuration that the engine would compute otherwise, or that contradicts itself.

    Raises:
        FormatError: It contradicts itself.
        UnsupportedModelError: The engine would compute it otherwise.
    """
    key = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    activation = config.get(key, family.activation)
    if ACTIVATIONS.get(str(activation), activation) != family.activation:
        raise UnsupportedModelError(
            f"{config.path}: the activation function is {shown(activation)} ({key}), but llama.cpp's "
            f"{family.architecture} computes {family.activation!r}. Such a model cannot be stored as GGUF."
        )
    check_rope(config, family.architecture, family.rope_types, is_rounded=family.is_ramp_rounded)
    heads, kv_heads = config.integer("num_attention_heads"), config.integer("num_key_value_heads")
    if heads % kv_heads:
        raise FormatError(f"{config.path}: {heads} heads cannot share {kv_heads} key-value heads evenly. Correct it.")
    family.check(config)


def _canonical(tensors: Mapping[str, Tensor], family: Family, config: Config) -> list[LazyTensor]:
    """Return the tensors under canonical names, each where the last of what it is made of stood."""
    found: dict[str, dict[int | None, LazyTensor]] = {}
    counts: dict[str, str | None] = {}
    for theirs, tensor in tensors.items():
        if theirs.endswith(IGNORED_SUFFIXES) or family.is_skipped(theirs, config):
            continue
        places = list(family.places(theirs, config))
        if not places:
            raise UnsupportedModelError(
                f"{theirs}: is no tensor of {family.classes[0]} that kvant knows. Check that architectures in "
                f"{config.path} names the right class."
            )
        if tensor.block_type not in FILE_TYPES:
            raise UnsupportedFormatError(
                f"{theirs}: its type {tensor.block_type} is not a plain float. Start from the full-precision model."
            )
        for place in places:
            changed = place.change.forward(tensor, config) if place.change else tensor
            parts = found.pop(place.name, {})
            if parts and (place.expert is None or place.expert in parts):
                raise FormatError(
                    f"{config.path.parent}: {place.name} comes from two tensors. Keep the weights of one model only."
                )
            counts[place.name] = place.count
            found[place.name] = parts | {place.expert: renamed(changed, place.name)}
    n_experts = expert_count(family, config)
    whole = [
        _whole(name, parts, config.integer(counts[name] or "") if counts[name] else n_experts, config)
        for name, parts in found.items()
    ]
    return [as_float32(t) if is_float32(t.name, t.shape) else t for t in whole]


def _whole(name: str, parts: Mapping[int | None, LazyTensor], count: int, config: Config) -> LazyTensor:
    """Return a tensor, stacked where it is one of each of `count` experts.

    Raises:
        FormatError: The experts are not those that the configuration says, or not of one shape and type.
    """
    if None in parts:
        return parts[None]
    missing = next((number for number in range(count) if number not in parts), None)
    if missing is not None or len(parts) != count:
        which = f"expert {missing} is missing" if missing is not None else f"there are {len(parts)} experts"
        raise FormatError(f"{name}: {which} of the {count} that {config.path} names. Download all weight files.")
    tensors = [parts[number] for number in range(count)]
    first = tensors[0]
    for number, tensor in enumerate(tensors):
        if (tensor.shape, tensor.block_type) != (first.shape, first.block_type):
            raise FormatError(
                f"{name}: expert {number} is {list(tensor.shape)} of {tensor.block_type}, expert 0 is "
                f"{list(first.shape)} of {first.block_type}. Download all weight files again."
            )
    return stacked(name, tensors)


def _other_parts(weights: Iterable[str], family: Family, config: Config) -> tuple[str, ...]:
    """Say what is no part of the language model: a multimodal model's other towers."""
    skipped = [name for name in weights if family.is_skipped(name, config)]
    if not skipped:
        return ()
    return (f"{len(skipped)} tensors (first {skipped[0]}) are no part of the language model and stay out of its file.",)


def _by_name(tensors: Iterable[LazyTensor], directory: Path) -> dict[str, LazyTensor]:
    found: dict[str, LazyTensor] = {}
    for tensor in tensors:
        if tensor.name in found:
            raise FormatError(f"{directory}: {tensor.name} comes from two tensors. Keep the weights of one model only.")
        found[tensor.name] = tensor
    return found


def _check_vocabulary(tensors: Mapping[str, Tensor], tokenizer: Mapping[str, Value], directory: Path) -> None:
    """Check that there is one embedding row per token, as the engine does.

    Raises:
        FormatError: There are more or fewer.
    """
    tokens = tokenizer.get("tokenizer.ggml.tokens")
    count = len(tokens.value) if tokens is not None else 0  # type: ignore[arg-type]
    for name in ("token_embd.weight", "output.weight"):
        tensor = tensors.get(name)
        if tensor is not None and tensor.shape[0] != count:
            raise FormatError(
                f"{name}: has {tensor.shape[0]} rows for {count} tokens. Check that the tokenizer and vocab_size in "
                f"{directory} are the model's own."
            )


def _file_type(tensors: Iterable[Tensor]) -> int:
    """Return the file type of the commonest matrix type."""
    weights: dict[BlockType, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            weights[tensor.block_type] = weights.get(tensor.block_type, 0) + n_weights(tensor)
    return FILE_TYPES[max(weights, key=lambda kind: weights[kind])] if weights else 0


def _stored(weights: Mapping[str, Tensor], scheme: Scheme, family: Family, config: Config) -> dict[str, Stored]:
    """What the tensors that MLX quantized are stored as, by their names here."""

    def blocks(path: str, name: str) -> Tensor | None:
        found = same_blocks(weights, path, scheme.layers[path])
        change = next(family.places(path + WEIGHT, config)).change
        return None if found is None else renamed(change.forward(found, config) if change else found, name)

    named = {path: family.canonical_name(path + WEIGHT, config) for path in scheme.layers}
    return {
        name: Stored(
            kind=grouping_name(scheme.layers[path]), n_bytes=layer_bytes(weights, path),
            blocks=partial(blocks, path, name),
        )
        for path, name in named.items()
        if name is not None
    }  # fmt: skip


def _held(
    layers: Mapping[str, Layer], tensors: Mapping[str, Tensor], family: Family, config: Config
) -> dict[str, Stored]:
    """What decoded tensors are stored as, by their names here."""

    def move(change: Transform | None, tensor: Tensor) -> LazyTensor:
        return change.forward(tensor, config) if change else renamed(tensor, tensor.name)

    found: dict[str, dict[int, tuple[Layer, Move | None]]] = {}
    for theirs, layer in layers.items():
        for place in () if family.is_skipped(theirs, config) else family.places(theirs, config):
            moves = place.change is None or place.change.moves_rows
            found.setdefault(place.name, {})[place.expert or 0] = (
                layer,
                partial(move, place.change) if moves else None,
            )
    return {
        name: stored_as(tensors[name], [parts[expert] for expert in sorted(parts)])
        for name, parts in found.items()
        if name in tensors
    }


def _files(directory: Path) -> tuple[Path, ...]:
    others = (
        "config.json", "generation_config.json", "tokenizer.json", "tekken.json", "tokenizer.model",
        "tokenizer_config.json",
    )  # fmt: skip
    return (*weight_files(directory), *(directory / name for name in others if (directory / name).is_file()))
