"""One GGUF file open in llama.cpp: tokens in, logits or text out.

Determinism: there is no sampling and no seed, and the whole model runs on the processor. As in the engine by default,
flash attention is on, the KV cache is F16, and some weights are repacked at load for speed (`repack=False`: not).
"""

import ctypes as c
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from kvant.errors import EngineError, ValueRangeError
from kvant.kernels import _ext
from kvant.runtime import capi

MAX_UBATCH = 512


class LlamaCpp:
    """A model and one context of it; use it as a context manager.

    Args:
        path: A GGUF file; the first one if it is split.
        n_ctx: Tokens that fit the context; with several sequences, each of them.
        n_threads: Threads for prompts and for generation.
        all_logits: Reserve buffers for the logits of every position of a context, not only of the last one.
        use_mmap: Map the file; otherwise read it into memory.
        repack: Let the engine keep some weights in a second, faster layout.
        vocab_only: Load the tokenizer and no weights; nothing can be decoded.
        n_seq: Sequences that `extend` reads side by side; all other calls use the first.
        weightless: Load all but the weights' values: the engine checks hyperparameters, tokenizer, names and shapes.
        embeddings: Make vectors of texts, by the model's own pooling or else the mean, instead of logits.
        ranking: With `embeddings`: give the scores of the model's classification head instead of vectors.
        observer: Is shown all that is computed, see observer.py.

    Attributes:
        n_vocab: Tokens in the vocabulary.
        add_bos: The model wants a start token before its text.
        bos: The start token; -1 if none.
        eos_ids: Tokens that end a generation.
        n_params: Weights.
        tensor_bytes: Bytes of all tensors.
        load_s: Seconds it took to load and to prepare a context.

    Raises:
        EngineError: The engine cannot load the file, or the model writes no text and no vectors are asked for.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int = 2048,
        n_threads: int = 2,
        all_logits: bool = False,
        use_mmap: bool = True,
        repack: bool = True,
        vocab_only: bool = False,
        n_seq: int = 1,
        embeddings: bool = False,
        ranking: bool = False,
        weightless: bool = False,
        observer: "_ext.Observer | None" = None,
    ) -> None:
        self._lib = capi.load()
        self._observer = observer
        self._model: int | None = None
        self._context: int | None = None
        self._held: list[int] = []
        self._lengths = np.zeros(n_seq, np.int32)
        self.path, self.n_ctx, self._embeds, self._ranks = path, n_ctx, embeddings, ranking
        start = time.perf_counter()
        try:
            self._model = self._open_model(
                use_mmap=use_mmap and not weightless, repack=repack, vocab_only=vocab_only, weightless=weightless
            )
            self._vocab = self._lib.llama_model_get_vocab(self._model)
            if not vocab_only and not weightless:
                self._context = self._open_context(n_threads, all_logits=all_logits, embeddings=embeddings)
        except EngineError:
            self.close()
            raise
        self.load_s = time.perf_counter() - start
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        self.add_bos = bool(self._lib.llama_vocab_get_add_bos(self._vocab))
        self.add_eos = bool(self._lib.llama_vocab_get_add_eos(self._vocab))
        self.bos = int(self._lib.llama_vocab_bos(self._vocab))
        self.n_params = int(self._lib.llama_model_n_params(self._model))
        self.tensor_bytes = int(self._lib.llama_model_size(self._model))
        self.n_ctx_train = int(self._lib.llama_model_n_ctx_train(self._model))

    def _open_model(self, *, use_mmap: bool, repack: bool, vocab_only: bool, weightless: bool) -> int:
        params = self._lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.load_mode = capi.LOAD_MAP if use_mmap else capi.LOAD_READ
        params.use_extra_bufts = repack
        params.vocab_only, params.no_alloc = vocab_only, weightless
        capi.clear_log()
        model = self._lib.llama_model_load_from_file(str(self.path).encode(), params)
        if not model:
            raise EngineError(
                f"{self.path}: llama.cpp cannot load it ({capi.log_tail()}). Check it with: kvant inspect"
            )
        return int(model)

    def _open_context(self, n_threads: int, *, all_logits: bool, embeddings: bool) -> int:
        if self._lib.llama_model_has_encoder(self._model):
            reads_only = not self._lib.llama_model_has_decoder(self._model)
            what = "an encoder alone" if reads_only else "an encoder before its decoder, each run by itself"
            raise EngineError(f"{self.path}: is {what}, which is not run here. Use llama.cpp's own programs.")
        context = self._make_context(self._context_params(n_threads, all_logits=all_logits, embeddings=embeddings))
        pooling = int(self._lib.llama_pooling_type(context))
        if embeddings and pooling == capi.POOLING_RANK and not self._ranks:
            self._lib.llama_free(context)
            raise EngineError(
                f"{self.path}: scores pairs of texts (a reranker) and makes no vectors. Serve it with "
                "kvant serve (/v1/rerank)."
            )
        if embeddings and pooling == capi.POOLING_NONE:
            self._lib.llama_free(context)
            params = self._context_params(n_threads, all_logits=all_logits, embeddings=embeddings)
            params.pooling_type = capi.POOLING_MEAN
            context = self._make_context(params)
        if not embeddings and not self._lib.llama_get_memory(context):
            self._lib.llama_free(context)
            raise EngineError(
                f"{self.path}: keeps nothing of what it reads, so it makes vectors of texts and writes none. Measure "
                "it with kvant evaluate; serve it with kvant serve (/v1/embeddings)."
            )
        return context

    def _context_params(self, n_threads: int, *, all_logits: bool, embeddings: bool) -> capi.ContextParams:
        params: capi.ContextParams = self._lib.llama_context_default_params()
        params.n_seq_max = len(self._lengths)
        params.n_ctx = params.n_batch = self.n_ctx * params.n_seq_max
        params.n_ubatch = params.n_ctx if embeddings else min(params.n_ctx, MAX_UBATCH)
        params.embeddings = embeddings
        if self._ranks:
            params.pooling_type = capi.POOLING_RANK
        params.n_threads = params.n_threads_batch = n_threads
        params.n_outputs_max = 0 if all_logits or embeddings else params.n_seq_max
        params.flash_attn_type = capi.FLASH_ATTENTION_ON
        params.type_k = params.type_v = capi.TYPE_F16
        if self._observer is not None:
            params.cb_eval, params.cb_eval_user_data = self._observer.callback, self._observer.address
            params.flash_attn_type = capi.FLASH_ATTENTION_OFF  # whose shares are not shown
        return params

    def _make_context(self, params: capi.ContextParams) -> int:
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise EngineError(
                f"{self.path}: llama.cpp cannot make a context of {self.n_ctx} tokens ({capi.log_tail()}). "
                "Ask for a smaller context."
            )
        return int(context)

    def close(self) -> None:
        """Free the engine's memory; a second call does nothing."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._model = self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def chat_template(self) -> str | None:
        """The model's own chat template; None if it has none."""
        text = self._lib.llama_model_chat_template(self._model, None)
        return None if text is None else bytes(text).decode("utf-8", errors="replace")

    @functools.cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens after which generation ends."""
        return frozenset(t for t in range(self.n_vocab) if self._lib.llama_vocab_is_eog(self._vocab, t))

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray:
        """Return token ids, int32 [n].

        Args:
            text: Any text.
            add_special: Add the start and end tokens that the model wants.
            parse_special: Read `<|im_start|>` and the like as the tokens they name.
        """
        data = text.encode()
        capacity = len(data) + 16
        ids = np.empty(capacity, np.int32)
        n = self._lib.llama_tokenize(
            self._vocab, data, len(data), ids.ctypes.data_as(c.POINTER(c.c_int32)), capacity, add_special, parse_special
        )
        if n < 0:
            raise EngineError(f"{self.path}: llama.cpp cannot tokenize {len(data)} bytes of text. Use a shorter text.")
        return ids[:n].copy()

    def pair_tokens(self, query: str, document: str) -> np.ndarray:
        """Return the token ids of a pair as the engine's server makes them for a reranker, int32 [n].

        That is the model's prompt `rerank` filled in, or the two texts between the tokens that the model wants around
        them. Of a document that is too long for the context the beginning is read.

        Source: llama.cpp b11549 `server-common.cpp` `format_prompt_rerank`.
        """
        template = self._lib.llama_model_chat_template(self._model, b"rerank")
        while True:
            if template is not None:
                prompt = bytes(template).decode("utf-8", errors="replace").replace("{query}", query)
                ids = self.tokenize(prompt.replace("{document}", document), parse_special=True)
            else:
                ids = self._between(self.tokenize(query), self.tokenize(document))
            if len(ids) <= self.n_ctx or not document:
                return ids
            document = document[: len(document) * 3 // 4]

    def _between(self, query: np.ndarray, document: np.ndarray) -> np.ndarray:
        lib, vocab = self._lib, self._vocab
        separator, end = int(lib.llama_vocab_sep(vocab)), int(lib.llama_vocab_eos(vocab))
        last = [end if end >= 0 else separator] if self.add_eos else []
        middle = [*last, *([separator] if lib.llama_vocab_get_add_sep(vocab) else [])]
        first = [self.bos] if self.add_bos else []
        return np.concatenate([np.array(part, np.int32) for part in (first, query, middle, document, last)])

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for; a special token gives none."""
        self._check_tokens([token])
        size = 64
        while True:
            buffer = c.create_string_buffer(size)
            n = int(self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False))
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def logits(self, tokens: Sequence[int] | np.ndarray, *, first: int = 0) -> np.ndarray:
        """Run one window from an empty context and return the logits of its positions.

        Args:
            tokens: Token ids [n], n at most `n_ctx`.
            first: Position of the first logits wanted.

        Returns:
            Logits, float32 [n - first, n_vocab]; row i predicts the token after position first + i. A view into the
            engine's memory, valid until the next call.

        Raises:
            ValueRangeError: Too many tokens, or an id outside the vocabulary.
            EngineError: The engine failed.
        """
        n = len(tokens)
        if not 0 <= first < n:
            raise ValueRangeError(f"first: {first} is outside a window of {n} tokens. Choose 0 to {n - 1}.")
        self.clear()
        self._decode(tokens, 0, first)
        pointer = self._lib.llama_get_logits(self._context)
        if not pointer:
            raise EngineError(
                f"{self.path}: llama.cpp gave no logits ({capi.log_tail()}). Open it with all_logits=True."
            )
        return np.ctypeslib.as_array(pointer, shape=(n - first, self.n_vocab))

    def generate(
        self, tokens: Sequence[int] | np.ndarray, n: int, on_token: Callable[[int], bool | None] = lambda _: None
    ) -> list[int]:
        """Continue a prompt greedily; the context keeps what it has read.

        Args:
            tokens: The prompt's token ids; a start that equals what the context holds is not read again.
            n: Most tokens to make.
            on_token: Told every token; returning False ends the generation.

        Returns:
            The tokens made, without the one that ended them.

        Raises:
            ValueRangeError: Prompt and answer do not fit the context.
            EngineError: The engine failed.
        """
        prompt = [int(t) for t in tokens]
        if not prompt or len(prompt) + n > self.n_ctx:
            raise ValueRangeError(
                f"prompt: {len(prompt)} tokens and {n} to make break the context of {self.n_ctx}. "
                "Open it with a larger n_ctx."
            )
        kept = self._keep_common_prefix(prompt)
        made: list[int] = []
        pending, position = prompt[kept:], kept
        while len(made) < n:
            self._decode(pending, position, len(pending) - 1)
            self._held += pending
            position += len(pending)
            token = int(np.argmax(self._last_logits()))
            if token in self.eos_ids:
                break
            made.append(token)
            if on_token(token) is False:
                break
            pending = [token]
        return made

    def next_logits(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read a text and return logits of the token after it, float32 [n_vocab], valid until the next call.

        A start that equals what the context holds is not read again.

        Raises:
            ValueRangeError: The text is empty or does not fit the context.
            EngineError: The engine failed.
        """
        text = [int(t) for t in tokens]
        if not text:
            raise ValueRangeError("tokens: none are given, so nothing can follow. Give at least one.")
        kept = self._keep_common_prefix(text)
        self._decode(text[kept:], kept, len(text) - kept - 1)
        self._held += text[kept:]
        return self._last_logits()

    def embed(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the vector of a text, float32 [width], as the engine pools it; opened with `embeddings`.

        Opened with `ranking`, the scores of the model's head, float32 [labels].

        Raises:
            ValueRangeError: No tokens, too many, or an id outside the vocabulary.
            EngineError: The engine failed.
        """
        if not len(tokens):
            raise ValueRangeError("tokens: none are given, so there is nothing to read. Give at least one.")
        memory = self._lib.llama_get_memory(self._context)
        if memory:
            self._lib.llama_memory_clear(memory, True)
        self._decode(tokens, 0, 0)
        pointer = self._lib.llama_get_embeddings_seq(self._context, 0)
        if not pointer:
            raise EngineError(
                f"{self.path}: llama.cpp gave no vector ({capi.log_tail()}). Open it with embeddings=True."
            )
        count = self._lib.llama_model_n_cls_out if self._ranks else self._lib.llama_model_n_embd_out
        width = int(count(self._model))
        return np.ctypeslib.as_array(pointer, shape=(width,)).copy()

    def extend(self, parts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """Append tokens to sequences side by side and return logits of what follows those that grew.

        One pass over the weights serves all sequences, which is what generation waits for.

        Args:
            parts: Token ids for each of the `n_seq` sequences; may be none. They start empty and after `clear`.

        Returns:
            Logits, float32 [parts that are not empty, n_vocab], valid until the next call.

        Raises:
            ValueRangeError: Another number of parts, all of them empty, or more tokens than a sequence can hold.
            EngineError: The engine failed.
        """
        counts = np.array([len(part) for part in parts], np.int32)
        if counts.shape != self._lengths.shape or not counts.any():
            raise ValueRangeError(
                f"parts: {len(parts)} with {counts.sum()} tokens are not one for each of {len(self._lengths)} "
                "sequences, of which one grows. Open it with the right n_seq."
            )
        sequences = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        ends = np.cumsum(counts)
        places = np.arange(len(sequences), dtype=np.int32) - (ends - counts - self._lengths)[sequences].astype(np.int32)
        wanted = np.isin(np.arange(len(sequences)), ends[counts > 0] - 1)
        self._run(np.concatenate([np.asarray(part, np.int32) for part in parts]), places, wanted, sequences)
        self._lengths += counts
        pointer = self._lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(int(wanted.sum()), self.n_vocab))

    def time_prompt(self, tokens: np.ndarray) -> float:
        """Read a prompt into an empty context, logits of its last token alone; return the seconds it took.

        Opened with `embeddings`, it reads a text for its vector.
        """
        if self._embeds:
            start = time.perf_counter()
            self.embed(tokens)
            return time.perf_counter() - start
        self.clear()
        start = time.perf_counter()
        self._decode(tokens, 0, len(tokens) - 1)
        self._held = tokens.tolist()
        return time.perf_counter() - start

    def time_steps(self, n: int) -> float:
        """Make `n` tokens greedily after what the context holds, ends ignored; return the seconds it took."""
        start = time.perf_counter()
        for _ in range(n):
            token = int(np.argmax(self._last_logits()))
            self._decode([token], len(self._held), 0)
            self._held.append(token)
        return time.perf_counter() - start

    def clear(self) -> None:
        """Forget the context's tokens."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
        self._held = []
        self._lengths[:] = 0

    def _keep_common_prefix(self, prompt: list[int]) -> int:
        """Drop from the context what differs from a prompt; return how many of its tokens are still held."""
        held, same = self._held, 0
        while same < min(len(held), len(prompt) - 1) and held[same] == prompt[same]:
            same += 1
        memory = self._lib.llama_get_memory(self._context)
        if same == 0 or not self._lib.llama_memory_seq_rm(memory, 0, same, -1):
            self.clear()
            return 0
        self._held = held[:same]
        return same

    def _last_logits(self) -> np.ndarray:
        pointer = self._lib.llama_get_logits_ith(self._context, -1)
        if not pointer:
            raise EngineError(f"{self.path}: llama.cpp gave no logits ({capi.log_tail()}). Report it with the file.")
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    def _decode(self, tokens: Sequence[int] | np.ndarray, position: int, first_output: int) -> None:
        """Feed tokens at `position`; logits are kept from index `first_output` on."""
        places = np.arange(position, position + len(tokens), dtype=np.int32)
        self._run(np.ascontiguousarray(tokens, np.int32), places, np.arange(len(tokens)) >= first_output)

    def _run(
        self, ids: np.ndarray, places: np.ndarray, wanted: np.ndarray, sequences: np.ndarray | None = None
    ) -> None:
        """Feed a batch: ids, their positions and sequences (the first if None), int32 [n], and whose logits to keep."""
        if self._context is None:
            raise EngineError(f"{self.path}: was opened without weights. Open it without vocab_only.")
        self._check_tokens(ids)
        n = len(ids)
        if n and places.max() >= self.n_ctx:
            raise ValueRangeError(
                f"tokens: {places.max() + 1} break the context of {self.n_ctx}. Open it with a larger n_ctx."
            )
        flags, int_p = wanted.astype(np.int8), c.POINTER(c.c_int32)
        batch = capi.Batch(
            n_tokens=n, token=ids.ctypes.data_as(int_p), pos=places.ctypes.data_as(int_p),
            logits=flags.ctypes.data_as(c.POINTER(c.c_int8)),
        )  # fmt: skip
        if sequences is not None:
            ones = np.ones(n, np.int32)
            addresses = sequences.ctypes.data + sequences.itemsize * np.arange(n, dtype=np.uintp)
            batch.n_seq_id = ones.ctypes.data_as(int_p)
            batch.seq_id = addresses.ctypes.data_as(c.POINTER(int_p))
        capi.clear_log()
        status = int(self._lib.llama_decode(self._context, batch))
        if status != 0:
            raise EngineError(
                f"{self.path}: llama.cpp failed with status {status} on {n} tokens ({capi.log_tail()}). "
                "Check the file with: kvant inspect"
            )

    def _check_tokens(self, tokens: Sequence[int] | np.ndarray) -> None:
        ids = np.asarray(tokens)
        if ids.size and (ids.min() < 0 or ids.max() >= self.n_vocab):
            raise ValueRangeError(
                f"tokens: {int(ids.min())}..{int(ids.max())} leave the vocabulary 0..{self.n_vocab - 1}. "
                "Use ids that this model's tokenizer gave."
            )
