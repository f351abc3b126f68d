"""A model family as a table: names of its tensors, the few that change on the way, and its hyperparameters.

A family is read in both directions: Hugging Face names and layouts to canonical ones (llama.cpp's) and back. A new one
is a `Family` of some lines in the module of its kin, added to `registry.py`; docs/how-to/add-an-architecture.md goes
through one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kvant.formats.huggingface.architectures.keys import (
    INTEGERS,
    RMS_EPSILON,
    Key,
    config_entries,
    hyperparameters,
    written,
)
from kvant.formats.huggingface.architectures.names import (
    ATTENTION_BIASES,
    BLOCK_NAMES,
    GLOBAL_NAMES,
    Names,
    Place,
    Rule,
    layer_of,
    layer_of_theirs,
    rules,
)
from kvant.formats.huggingface.architectures.rope import Lengthening
from kvant.formats.huggingface.architectures.transforms import Transform
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value
from kvant.model import Model
from kvant.tensors import LazyTensor

OTHER_PARTS = (
    "vision_tower.", "vision_model.", "vision_encoder.", "multi_modal_projector.", "visual.", "audio_tower.",
    "embed_vision.", "embed_audio.", "vision_adapter.", "vision_projection.", "audio_model.", "connector.", "mlp1.",
    "image_newline", "multimodal_projector.", "audio_encoder.", "audio_adapter.",
)  # fmt: skip
"""Prefixes of the tensors of a multimodal model's other parts, after a `model.` that may stand before."""


def _nothing_extra(_: Config) -> list[LazyTensor]:
    return []


def _nothing_refused(_: Config) -> None:
    return None


def _no_window(_: Config) -> int | None:
    return None


def _no_metadata(_: Config) -> dict[str, Value]:
    return {}


def _nothing_derived(_: Config) -> Mapping[str, Any]:
    return {}


def _as_it_is(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    return entries


def _itself(_: Mapping[str, Any], __: Path) -> "Family | None":
    return None


def _anyhow(_: Model) -> bool:
    return True


def _nothing_more(_: Model) -> Mapping[str, Any]:
    return {}


def _no_shapes(_: Config, __: int | None) -> Mapping[str, tuple[int, ...]]:
    return {}


def _nothing_seen(_: Config, __: Collection[str]) -> Mapping[str, Any]:
    return {}


def _same_name(name: str, _: Config) -> str:
    return name


@dataclass(frozen=True, kw_only=True)
class Family:
    """What sets a family of models apart.

    Attributes:
        architecture: llama.cpp's name, which prefixes the metadata keys.
        classes: Classes in `architectures` of config.json; the first one is written on the way back.
        model_type: `model_type` written on the way back.
        models: Published models of it, for people.
        since: kvant's version that converts it first.
        activation: The one activation function llama.cpp computes for this architecture.
        rope_types: Rotary scalings that both sides know; empty if positions are no rotations.
        engine_lengthening: By how much llama.cpp's YaRN lengthens queries and keys, where not by its default rule.
        is_ramp_rounded: Whether a YaRN with `truncate: false` is taken although llama.cpp rounds the limits of its
            ramp, because the published models have it and run so everywhere; said in a remark.
        block: transformers' name of the list of blocks.
        names: Canonical stem to transformers' stem within a block, for weights and biases.
        outside: The same outside the blocks, with whole names.
        rules: Further tensors within a block: those of experts, of other suffixes, and other spellings.
        outside_rules: Further tensors outside the blocks.
        transforms: Tensors of `names` and `outside` that change, by canonical stem.
        renamed: Gives a tensor of a checkpoint the name that the tables know.
        spelled: Gives the entries of config.json the names that the tables know.
        prefixes: What may stand before the names of a checkpoint of another class.
        ends: Stems outside the blocks that must be there.
        has_head: Whether there is an `output.weight` where the embedding is not the head as well.
        required: Stems that every block must have, or those of one block by its number.
        shapes: Shapes by stem where they are not those of attention and MLP: products of entries of config.json, see
            `shapes.py`; an empty one is not checked.
        shapes_in: The same as lengths, for one block by its number or outside of them (None), -1 for any length.
        counts: Sizes in metadata that must be there, see `keys.hyperparameters`.
        epsilons: Epsilons of norms in metadata.
        experts: Hyperparameters of experts.
        keys: Further hyperparameters that both sides store as they are.
        computed: Hyperparameters that need more than that, under keys without their architecture.
        own_metadata: All hyperparameters, where upstream's order is another than `hyperparameters`'.
        seen: Entries of config.json that follow from which tensors a checkpoint has.
        blocks: Number of blocks in the file; by default that of the layers.
        extra_tensors: Tensors that upstream computes from the configuration.
        config: Hyperparameters back to entries of config.json; by default those of `keys`.
        returned: Entries of config.json, over these, that follow otherwise from metadata, or that have one value only.
        holds: Whether a GGUF is of this family, among those that share an architecture.
        is_tied: Whether llama.cpp has no head for it but the embedding.
        one_way: Why transformers' directories are not written from its GGUFs; empty if they are.
        defaults: Entries that transformers assumes when config.json leaves them out.
        derived: Entries that follow from others, as transformers' configuration computes them.
        instead: Another family that a config.json of these classes, at a path, is of; None if it is of this one.
        templates: Chat templates by name that the engine finds in the file, beside the model's own.
        remark: What is said of every model of it; empty for nothing.
        entries: What its config.json may hold beyond `entries.COMMON` and `keys`.
        modules: Steps of sentence-transformers' `modules.json` that are in what is made.
        skipped: Further prefixes of tensors that are no part of the language model.
        drops_guessing: Whether blocks behind the layers, which guess further tokens, are left out as upstream does.
        check: Refuses configurations that llama.cpp would compute differently.
        computes_head_dim: Whether transformers fills in a head length that config.json leaves out.
        biased: Stems that have a bias whatever config.json says.
        bias_flags: Entries of config.json that ask for biases, and the stems that then have one.
        engine_biases: Stems whose biases llama.cpp adds.
        unseen_window: Tokens that transformers attends back to in layers where llama.cpp attends to all; None if none.
    """

    architecture: str
    classes: tuple[str, ...]
    model_type: str
    models: str
    since: str = "0.2"
    activation: str = "silu"
    rope_types: frozenset[str] = frozenset({"default", "linear", "yarn"})
    engine_lengthening: Lengthening | None = None
    is_ramp_rounded: bool = False
    block: str = "model.layers"
    names: Mapping[str, str] = field(default_factory=lambda: BLOCK_NAMES)
    outside: Mapping[str, str] = field(default_factory=lambda: GLOBAL_NAMES)
    rules: tuple[Rule, ...] = ()
    outside_rules: tuple[Rule, ...] = ()
    transforms: Mapping[str, Transform] = field(default_factory=dict)
    renamed: Callable[[str, Config], str] = _same_name
    spelled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is
    prefixes: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("token_embd", "output_norm")
    has_head: bool = True
    required: Sequence[str] | Callable[[Config, int], Collection[str]] = tuple(BLOCK_NAMES)
    shapes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shapes_in: Callable[[Config, int | None], Mapping[str, tuple[int, ...]]] = _no_shapes
    counts: tuple[Key, ...] = INTEGERS
    epsilons: tuple[Key, ...] = (RMS_EPSILON,)
    experts: tuple[Key, ...] = ()
    keys: tuple[Key, ...] = ()
    computed: Callable[[Config], Mapping[str, Value]] = _no_metadata
    own_metadata: Callable[[Config], dict[str, Value]] | None = None
    seen: Callable[[Config, Collection[str]], Mapping[str, Any]] = _nothing_seen
    blocks: Callable[[Config], int] = lambda config: config.n_layers
    extra_tensors: Callable[[Config], list[LazyTensor]] = _nothing_extra
    config: Callable[[Model], dict[str, Any]] | None = None
    returned: Callable[[Model], Mapping[str, Any]] = _nothing_more
    holds: Callable[[Model], bool] = _anyhow
    is_tied: bool = False
    one_way: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Config], Mapping[str, Any]] = _nothing_derived
    instead: Callable[[Mapping[str, Any], Path], "Family | None"] = _itself
    templates: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""
    entries: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset({"Transformer"})
    skipped: tuple[str, ...] = ()
    drops_guessing: bool = False
    check: Callable[[Config], None] = _nothing_refused
    computes_head_dim: bool = False
    biased: tuple[str, ...] = ()
    bias_flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engine_biases: frozenset[str] = frozenset(ATTENTION_BIASES[:3])
    unseen_window: Callable[[Config], int | None] = _no_window

    @cached_property
    def _names(self) -> Names:
        inside = (*rules(self.names, self.transforms), *self.rules)
        return Names(self.block, inside, (*rules(self.outside, self.transforms), *self.outside_rules))

    @property
    def known_entries(self) -> frozenset[str]:
        """Entries of config.json that are read beyond those of every family."""
        tables = (*self.counts, *self.epsilons, *self.experts, *self.keys)
        return self.entries | {name for key in tables for name in key.theirs.split("|")}

    def metadata(self, config: Config) -> dict[str, Value]:
        """Return the hyperparameters under GGUF keys, in upstream's order."""
        if self.own_metadata:
            return self.own_metadata(config)
        found = hyperparameters(
            config, self.architecture, n_blocks=self.blocks(config), counts=self.counts, epsilons=self.epsilons,
            experts=self.experts, has_rope=bool(self.rope_types), lengthening=self.engine_lengthening,
        )  # fmt: skip
        found |= {f"{self.architecture}.{key}": value for key, value in self.computed(config).items()}
        return found | written(self.keys, config, self.architecture)

    def config_entries(self, model: Model) -> dict[str, Any]:
        """Return the hyperparameters as entries of config.json."""
        made = self.config or self._config_entries
        return {**made(model), **self.returned(model)}

    def _config_entries(self, model: Model) -> dict[str, Any]:
        return config_entries(
            model, (*self.experts, *self.keys), epsilons=self.epsilons, has_rope=bool(self.rope_types),
            names=self.defaults,
        )  # fmt: skip

    def required_in(self, config: Config, layer: int) -> Collection[str]:
        """Return the stems that a block must have."""
        return self.required(config, layer) if callable(self.required) else self.required

    def biases(self, config: Config) -> frozenset[str]:
        """Return the stems that have a bias in transformers."""
        asked = [stem for flag, stems in self.bias_flags.items() if config.flag(flag) for stem in stems]
        return frozenset((*self.biased, *asked))

    def stem(self, name: str) -> str | None:
        """Return the stem of a canonical tensor name: `attn_q` of `blk.3.attn_q.weight`; None for another form."""
        return self._names.stem(name)

    def layer(self, name: str) -> int | None:
        """Return the block that a canonical tensor name is in; None outside the blocks."""
        return layer_of(name)

    def is_skipped(self, theirs: str, config: Config) -> bool:
        """Whether a tensor of a checkpoint is no part of the language model."""
        if self.drops_guessing and layer_of_theirs(theirs) >= config.n_layers:
            return True
        own = self._without_prefix(theirs)
        return theirs.removeprefix("model.").startswith(OTHER_PARTS) or own.startswith(self.skipped or ("\0",))

    def places(self, theirs: str, config: Config | None = None) -> Iterator[Place]:
        """Yield where a tensor of a checkpoint goes; nowhere if the family has none of that name."""
        name = self._whole(theirs)
        return self._names.places(self.renamed(name, config) if config else name)

    def canonical_name(self, theirs: str, config: Config | None = None) -> str | None:
        """Translate transformers' name of a tensor that is one here, too; None if there is no such tensor."""
        found = list(self.places(theirs, config))
        return found[0].name if len(found) == 1 and found[0].expert is None else None

    def theirs(self, name: str) -> tuple[str, Rule] | None:
        """Return transformers' name of a canonical tensor and its rule; `{}` in it stands for the expert."""
        return self._names.theirs(name)

    def transformers_name(self, name: str) -> str | None:
        """Translate a canonical name of a tensor; None if transformers has no such tensor."""
        found = self.theirs(name)
        return found[0] if found else None

    def _whole(self, name: str) -> str:
        """The name within a whole text model: without a wrapper's prefix, with the root of a bare one."""
        name = self._without_prefix(name.replace("language_model.", "", 1))
        root = self.block.partition(".")[0] + "."
        outside = (*self.outside.values(), *(rule.theirs for rule in self.outside_rules))
        known = (root, *(theirs.partition(".")[0] + "." for theirs in outside))
        return name if name.startswith(known) else root + name

    def _without_prefix(self, name: str) -> str:
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name
