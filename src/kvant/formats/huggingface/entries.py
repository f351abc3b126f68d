"""What the files beside the weights may say: each entry is read, changes nothing, or is reported.

An entry that nobody here reads may be what the model was trained with. The tables name those that are read (where a
family reads more, its `Family.entries` says so) and those that change nothing of what the model computes; of the latter
some only while they have a certain value. `unread` lists the rest.

Source: the configuration classes of transformers 5.24, and entries that published models carry.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from kvant.formats.huggingface.config import shown

COMMON = frozenset({
    "architectures", "model_type", "auto_map", "quantization_config", "compression_config", "quantization", "kvant",
    "vocab_size", "hidden_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "max_position_embeddings",
    "rms_norm_eps", "head_dim", "hidden_act", "tie_word_embeddings", "rope_theta", "rope_scaling",
    "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings", "attention_bias", "mlp_bias",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "mask_token_id", "_name_or_path",
})  # fmt: skip
"""Entries of config.json that every family reads."""

HARMLESS = frozenset({
    # how it was made and saved
    "torch_dtype", "dtype", "transformers_version", "transformers.js_config", "_attn_implementation",
    "_attn_implementation_autoset", "_flash_attn_2_enabled", "attn_implementation", "_commit_hash",
    "_from_model_config",
    "initializer_range", "initializer_factor", "unsloth_version", "unsloth_fixed", "is_llama_config", "is_decoder",
    "model_name", "name_or_path", "tokenizer_class", "prefix", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "gradient_checkpointing", "pretraining_tp", "seq_length", "max_sequence_length", "model_max_length",
    "tokenizer_model_max_length",
    # training alone
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "classifier_dropout",
    "output_router_logits", "router_aux_loss_coef", "label_smoothing",
    # how transformers returns results
    "use_cache", "return_dict", "output_attentions", "output_hidden_states", "return_dict_in_generate", "output_scores",
    "chunk_size_feed_forward", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
    "task_specific_params", "remove_invalid_values", "exponential_decay_length_penalty",
    # how to generate; generation_config.json has it now
    "do_sample", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "max_length",
    "min_length", "num_beams", "num_beam_groups", "num_return_sequences", "early_stopping", "diversity_penalty",
    "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "forced_bos_token_id", "forced_eos_token_id", "decoder_start_token_id",
    "cross_attention_hidden_size", "tie_encoder_decoder",
})  # fmt: skip
"""Entries of config.json that change nothing of what the model computes from tokens."""

HARMLESS_AT: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "pruned_heads": ({},),
    "rope_interleaved": (False,),
    "qk_layernorm": (False,), "use_qk_norm": (False,), "bias": (False,), "use_bias": (False,), "logit_scale": (1.0,),
    "_sliding_window_pattern": (6,), "per_layer_config": ({},), "clip_qkv": (0,), "use_moe": (False,),
    "num_experts": (0,), "num_local_experts": (0,),
    "use_sliding_window": (False,), "attention_sink": (False,), "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,), "embedding_multiplier": (1.0,), "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,), "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "bad_words_ids": ([],),
}  # fmt: skip
"""Entries of config.json that change nothing while they have one of these values."""

WITHOUT_WINDOW = frozenset({"sliding_window", "max_window_layers", "layer_types"})
"""Entries that only count beside a window; transformers' classes without one pass over them."""

GENERATION = frozenset({
    "bos_token_id", "eos_token_id", "pad_token_id", "top_k", "top_p", "min_p", "temperature", "penalty_repeat",
    "repetition_penalty", "suppress_tokens",
})  # fmt: skip
"""Entries of generation_config.json that are read."""

GENERATION_HARMLESS = frozenset({
    "_from_model_config", "transformers_version", "do_sample", "max_length", "max_new_tokens", "min_length",
    "use_cache",
    "cache_implementation", "cache_config", "output_attentions", "output_hidden_states", "output_scores",
    "return_dict_in_generate", "trust_remote_code", "chat_format", "max_window_size", "user_token_id",
    "assistant_token_id", "low_memory", "renormalize_logits", "disable_compile", "decoder_start_token_id",
})  # fmt: skip
GENERATION_HARMLESS_AT: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "num_return_sequences": (1,), "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "length_penalty": (1.0,), "diversity_penalty": (0.0,), "early_stopping": (False,),
    "begin_suppress_tokens": ([],), "bad_words_ids": ([],), "remove_invalid_values": (False,),
    "encoder_repetition_penalty": (1.0,),
}  # fmt: skip

TOKENIZER = frozenset({
    "add_bos_token", "add_eos_token", "add_sep_token", "bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
    "mask_token", "added_tokens_decoder", "chat_template", "add_prefix_space", "clean_up_tokenization_spaces",
})  # fmt: skip
"""Entries of tokenizer_config.json that are read."""

TOKENIZER_HARMLESS = frozenset({
    "tokenizer_class", "backend", "is_local", "processor_class", "name_or_path", "model_max_length", "padding_side",
    "truncation_side", "truncation", "truncation_strategy", "max_length", "stride", "pad_to_multiple_of",
    "pad_token_type_id", "padding", "model_input_names", "errors", "extra_special_tokens",
    "model_specific_special_tokens",
    "additional_special_tokens", "cls_token", "legacy", "from_slow", "sp_model_kwargs", "use_default_system_prompt",
    "spaces_between_special_tokens", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file",
    "add_generation_prompt", "response_schema", "auto_map", "use_fast", "return_token_type_ids", "local_files_only",
    "image_token", "boi_token", "eoi_token", "image_token_id", "boi_token_id", "eoi_token_id", "unsloth_version",
    "device", "trust_remote_code", "verbose", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size",
})  # fmt: skip
"""Entries that do not change tokens: tokenizer.json has what counts of them, or they are for padding and pictures."""

TOKENIZER_HARMLESS_AT: Mapping[str, tuple[object, ...]] = {
    "split_special_tokens": (False,), "do_lower_case": (False,), "strip_accents": (False,), "remove_space": (False,),
    "keep_accents": (True,), "use_regex": (True,), "trim_offsets": (True,),
}  # fmt: skip

_SHOWN = 8


def unread(
    entries: Mapping[str, Any], read: Collection[str], harmless: Collection[str],
    harmless_at: Mapping[str, tuple[object, ...]],
) -> list[str]:  # fmt: skip
    """Return the entries that nobody reads, by name; null is as good as absent."""
    return [
        key
        for key, value in entries.items()
        if value is not None and key not in read and key not in harmless
        and not any(value == fine for fine in harmless_at.get(key, ()))
    ]  # fmt: skip


def config_remarks(entries: Mapping[str, Any], read: Collection[str], path: Path) -> Iterator[str]:
    """Say which entries of a config.json nobody reads; `read` are those of its family beyond `COMMON`."""
    harmless = HARMLESS if "sliding_window" in read else HARMLESS | WITHOUT_WINDOW
    yield from _said(entries, unread(entries, COMMON | set(read), harmless, HARMLESS_AT), path)


def generation_remarks(entries: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Say which entries of a generation_config.json nobody reads."""
    yield from _said(entries, unread(entries, GENERATION, GENERATION_HARMLESS, GENERATION_HARMLESS_AT), path)


def tokenizer_remarks(entries: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Say which entries of a tokenizer_config.json nobody reads."""
    yield from _said(entries, unread(entries, TOKENIZER, TOKENIZER_HARMLESS, TOKENIZER_HARMLESS_AT), path)


def _said(entries: Mapping[str, Any], keys: list[str], path: Path) -> Iterator[str]:
    if keys:
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        listed = ", ".join(f"{key[:80]} = {shown(entries[key])}" for key in keys[:_SHOWN])
        yield f"{path}: nobody reads {listed}{more}. What they ask for is not in what is made from it."
