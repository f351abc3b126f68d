"""Write a small model of a family that no package ships, with real predictions: SmolLM2-135M taught to another shape.

    python tools/trained_model.py experts OUT_DIR    # Mixtral: 8 experts of 256 neurons, 2 of them for a token
    python tools/trained_model.py hybrid OUT_DIR     # Falcon-H1: attention and a state-space layer side by side

Both are taught layer by layer, each on what the layers before it give, to do what SmolLM2's layer would do with that;
all that is learned is learned by least squares, so there is nothing to tune and no torch. 6,144 tokens of the bundled
calibration text and of the Python language's reference are the text; the held-out half is not. The same seed and the
same Python give the same model, up to the order of sums.

experts: tokens are clustered by direction, and the router is the regression on how near each centre is. An expert takes
the neurons that are strongest on its tokens; what comes out of them is fitted jointly with what the token's other
expert gives. That is how dense models are made into mixtures: Zhang et al., "MoEfication" (2022), Komatsuzaki et al.,
"Sparse Upcycling" (2023).

hybrid: of every three heads that share keys and values the weakest is taken away. In its place is a Mamba 2 whose
states, inputs and read-outs start as that head's values, keys and queries, at two rates of forgetting each; both
outputs are fitted together.
"""

import argparse
import json
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from kvant.evaluate.corpora import corpus
from kvant.formats.open import open_model
from kvant.kernels import decode
from kvant.tensors import n_rows, row_length
from reference_model import write_json, write_safetensors

WINDOW, WINDOWS = 256, 24
EXPERTS, USED, NEURONS = 8, 2, 256
RATES = (0.25, 0.02)
TAPS = 4
RIDGE = 0.01
SWEEPS = 3


class Teacher:
    """SmolLM2's weights, float32, by their names in GGUF, and its sizes."""

    def __init__(self, directory: Path) -> None:
        self._model = open_model(directory)
        self.config = json.loads((directory / "config.json").read_text())
        self.layers, self.width = self.config["num_hidden_layers"], self.config["hidden_size"]
        self.heads, self.shared = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        self.length = self.config["head_dim"]

    def __getitem__(self, name: str) -> np.ndarray:
        t = self._model.tensors[f"{name}.weight"]
        w = decode(t.read_bytes(0, n_rows(t)), t.block_type, row_length(t)).reshape(t.shape)
        if not name.endswith(("attn_q", "attn_k")):
            return w
        pairs = w.reshape(-1, self.length // 2, 2, self.width)  # llama.cpp's order of rotary rows
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(w.shape)

    def normed(self, x: np.ndarray, name: str) -> np.ndarray:
        """Return x over its root mean square, times a norm's gain."""
        scale: np.ndarray = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        found: np.ndarray = x * scale * self[name]
        return found

    def heads_of(self, h: np.ndarray, layer: int) -> np.ndarray:
        """Return what each head of attention gives, float32 [windows, tokens, heads, length]."""
        q, k, v = (h @ self[f"blk.{layer}.attn_{kind}"].T for kind in "qkv")
        out = np.empty((*h.shape[:2], self.heads, self.length), np.float32)
        angles = np.arange(h.shape[1])[:, None] * self.config["rope_theta"] ** (
            -np.arange(self.length // 2) * 2 / self.length
        )
        hidden = np.triu(np.full((h.shape[1], h.shape[1]), -np.inf, np.float32), 1)
        for window in range(len(h)):
            rows = [m[window].reshape(h.shape[1], -1, self.length).swapaxes(0, 1) for m in (q, k, v)]
            queries, keys = (_rotated(m, np.cos(angles), np.sin(angles)) for m in rows[:2])
            keys, values = (np.repeat(m, self.heads // self.shared, axis=0) for m in (keys, rows[2]))
            scores = queries @ keys.swapaxes(1, 2) / np.float32(self.length**0.5) + hidden
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[window] = (scores / scores.sum(axis=-1, keepdims=True) @ values).swapaxes(0, 1)
        return out


def _rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    """Return x σ(x)."""
    found: np.ndarray = x / (1 + np.exp(-np.clip(x, -80, 80)))
    return found


class Ridge:
    """Least squares: W, float32 [outputs, n], of the least |y - x Wᵀ|², held near a prior."""

    def __init__(self, x: np.ndarray) -> None:
        self.x, gram = x, (x.T @ x).astype(np.float64)
        self._hold = RIDGE * np.trace(gram) / len(gram)
        gram[np.diag_indices_from(gram)] += self._hold
        self._inverse = np.linalg.inv(gram).astype(np.float32)

    def fit(self, y: np.ndarray, prior: np.ndarray | float = 0.0) -> np.ndarray:
        """Return W for y [tokens, outputs]."""
        left = (y - self.x @ prior.T).T @ self.x if isinstance(prior, np.ndarray) else y.T @ self.x
        found: np.ndarray = left @ self._inverse + np.float32(prior)
        return found


def router_of(h: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a router, float32 [experts, n], that sends about as many tokens to each expert."""
    centred = h - h.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    centres = centred[random.choice(len(h), EXPERTS, replace=False)]
    for _ in range(15):
        nearest = np.argmax(centred @ centres.T, axis=1)
        sums = np.stack([centred[nearest == e].sum(axis=0) for e in range(EXPERTS)])
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)
    near = centred @ centres.T
    near = (near - near.mean(axis=0)) / near.std(axis=0)
    return Ridge(h).fit(near)


def routed(h: np.ndarray, router: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the experts of each token and their shares, [tokens, used]."""
    logits = h @ router.T
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :USED]
    found = np.take_along_axis(logits, chosen, axis=1)
    shares = np.exp(found - found.max(axis=1, keepdims=True))
    return chosen, shares / shares.sum(axis=1, keepdims=True)


def mixture(teacher: Teacher, layer: int, h: np.ndarray, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Return the router and experts that stand for a layer's MLP, and under `out` what they give for h [tokens, n]."""
    gate, up, down = (teacher[f"blk.{layer}.ffn_{kind}"] for kind in ("gate", "up", "down"))
    active = silu(h @ gate.T) * (h @ up.T)
    wanted = active @ down.T
    router = router_of(h, random)
    chosen, shares = routed(h, router)
    strength = np.sum(down * down, axis=0)
    rows, fits, neurons, outs, downs = [], [], [], [], []
    total = np.zeros_like(wanted)
    for expert in range(EXPERTS):
        token, place = np.nonzero(chosen == expert)
        share = shares[token, place, None].astype(np.float32)
        strongest = np.argsort(-np.sum(share * active[token] ** 2, axis=0) * strength, kind="stable")[:NEURONS]
        rows.append(token)
        neurons.append(np.sort(strongest))
        fits.append(Ridge(share * active[np.ix_(token, neurons[-1])]))
        downs.append(down[:, neurons[-1]])
        outs.append(fits[-1].x @ downs[-1].T)
        total[token] += outs[-1]
    for _ in range(SWEEPS):
        for e, token in enumerate(rows):
            rest = wanted[token] - (total[token] - outs[e])
            downs[e] = fits[e].fit(rest, down[:, neurons[e]])
            total[token] -= outs[e]
            outs[e] = fits[e].x @ downs[e].T
            total[token] += outs[e]
    return {
        "router": router, "gate": np.stack([gate[n] for n in neurons]), "up": np.stack([up[n] for n in neurons]),
        "down": np.stack(downs), "out": total, "wanted": wanted,
    }  # fmt: skip


def state_space(
    teacher: Teacher, layer: int, h: np.ndarray, kept: list[int], random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return a Mamba 2 made of the heads not kept, and under `out` its output before the last matrix, for h."""
    size, group = teacher.length, teacher.heads // teacher.shared
    q, k, v = (teacher[f"blk.{layer}.attn_{kind}"].reshape(-1, size, teacher.width) for kind in "qkv")
    lost = [head for head in range(teacher.heads) if head not in kept]
    inner = len(RATES) * len(lost) * size

    def scaled(w: np.ndarray, to: float) -> np.ndarray:
        spread = np.sqrt(np.mean((h.reshape(-1, teacher.width) @ w.T) ** 2))
        return w * np.float32(to / spread)

    parts = [
        scaled(random.standard_normal((inner, teacher.width)).astype(np.float32), 1.0),
        scaled(np.repeat(v[[head // group for head in lost]], len(RATES), axis=0).reshape(inner, -1), 1.0),
        scaled(k[[head // group for head in lost]].reshape(-1, teacher.width), 1.0),
        scaled(q[lost].reshape(-1, teacher.width), 1.0 / 8),
        scaled(random.standard_normal((len(RATES) * len(lost), teacher.width)).astype(np.float32), 0.3),
    ]
    rates = np.tile(np.array(RATES, np.float32), len(lost))
    found = {
        "in_proj": np.concatenate(parts), "dt_bias": np.log(np.expm1(rates)), "D": np.ones_like(rates),
        "A_log": np.zeros_like(rates),
        "conv": (0.15 * random.standard_normal((inner + 2 * len(lost) * size, 1, TAPS))).astype(np.float32),
        "bias": np.zeros(inner + 2 * len(lost) * size, np.float32),
    }  # fmt: skip
    found["conv"][:, 0, -1] += 1
    return {**found, "out": scanned(h, found, inner, len(lost), size)}


def scanned(h: np.ndarray, w: dict[str, np.ndarray], inner: int, groups: int, size: int) -> np.ndarray:
    """Run a Mamba 2 over windows [windows, tokens, n]; float32 [windows, tokens, inner].

        state = exp(dt A) state + dt x Bᵀ        out = (state C + D x) silu(z)

    Source: Dao and Gu, "Transformers are SSMs" (2024).
    """
    z, mixed, steps = np.split(h @ w["in_proj"].T, [inner, 2 * inner + 2 * groups * size], axis=-1)
    padded = np.concatenate([np.zeros((len(h), TAPS - 1, mixed.shape[-1]), np.float32), mixed], axis=1)
    mixed = silu(sum(padded[:, tap : tap + h.shape[1]] * w["conv"][:, 0, tap] for tap in range(TAPS)) + w["bias"])
    x, b, c = np.split(mixed, [inner, inner + groups * size], axis=-1)
    shape = (*h.shape[:2], groups, -1, size)
    x, b, c = x.reshape(shape), b.reshape(shape), c.reshape(shape)
    dt = np.logaddexp(0, steps + w["dt_bias"]).astype(np.float32)
    kept = np.exp(-dt * np.exp(w["A_log"])).reshape(*shape[:3], -1, 1, 1)
    pushed = x * dt.reshape(*shape[:3], -1, 1)
    state = np.zeros((len(h), groups, x.shape[3], size, size), np.float32)
    out = np.empty_like(x)
    for t in range(h.shape[1]):
        state = state * kept[:, t] + pushed[:, t, ..., None] * b[:, t, :, :, None, :]
        out[:, t] = (state @ c[:, t, :, :, :, None])[..., 0]
    out += x * w["D"].reshape(groups, -1, 1)
    found: np.ndarray = out.reshape(*h.shape[:2], inner) * silu(z)
    return found


def experts(teacher: Teacher, tokens: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a Mixtral, by their names in Hugging Face's files."""
    x, random = teacher["token_embd"][tokens], np.random.default_rng(seed)
    yield "model.embed_tokens.weight", teacher["token_embd"]
    for layer in range(teacher.layers):
        to = f"model.layers.{layer}"
        h = teacher.normed(x, f"blk.{layer}.attn_norm")
        x = x + teacher.heads_of(h, layer).reshape(*x.shape[:2], -1) @ teacher[f"blk.{layer}.attn_output"].T
        found = mixture(teacher, layer, teacher.normed(x, f"blk.{layer}.ffn_norm").reshape(-1, teacher.width), random)
        x = x + found["out"].reshape(x.shape)
        tell(layer, found["out"], found["wanted"])
        yield f"{to}.input_layernorm.weight", teacher[f"blk.{layer}.attn_norm"]
        for kind, name in zip(("q", "k", "v", "output"), "qkvo", strict=True):
            yield f"{to}.self_attn.{name}_proj.weight", teacher[f"blk.{layer}.attn_{kind}"]
        yield f"{to}.post_attention_layernorm.weight", teacher[f"blk.{layer}.ffn_norm"]
        yield f"{to}.block_sparse_moe.gate.weight", found["router"]
        for expert in range(EXPERTS):
            for name, kind in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
                yield f"{to}.block_sparse_moe.experts.{expert}.{name}.weight", found[kind][expert]
    yield "model.norm.weight", teacher["output_norm"]


def hybrid(teacher: Teacher, tokens: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a Falcon-H1, by their names in Hugging Face's files."""
    x, random = teacher["token_embd"][tokens], np.random.default_rng(seed)
    group, length = teacher.heads // teacher.shared, teacher.length
    yield "model.embed_tokens.weight", teacher["token_embd"]
    for layer in range(teacher.layers):
        to = f"model.layers.{layer}"
        h = teacher.normed(x, f"blk.{layer}.attn_norm")
        attended, out = teacher.heads_of(h, layer), teacher[f"blk.{layer}.attn_output"]
        wanted = (attended.reshape(*x.shape[:2], -1) @ out.T).reshape(-1, teacher.width)
        weight = [
            float(np.sum((attended[:, :, n].reshape(-1, length) @ out[:, n * length : (n + 1) * length].T) ** 2))
            for n in range(teacher.heads)
        ]
        lost = {min(range(n, n + group), key=weight.__getitem__) for n in range(0, teacher.heads, group)}
        kept = [n for n in range(teacher.heads) if n not in lost]
        found = state_space(teacher, layer, h, kept, random)
        both = np.concatenate([attended[:, :, kept].reshape(*x.shape[:2], -1), found["out"]], axis=-1)
        fitted = Ridge(both.reshape(-1, both.shape[-1])).fit(wanted)
        given = both @ fitted.T
        tell(layer, given.reshape(wanted.shape), wanted)
        x = x + given
        g = teacher.normed(x, f"blk.{layer}.ffn_norm")
        mlp = {kind: teacher[f"blk.{layer}.ffn_{kind}"] for kind in ("gate", "up", "down")}
        x = x + (silu(g @ mlp["gate"].T) * (g @ mlp["up"].T)) @ mlp["down"].T
        yield f"{to}.input_layernorm.weight", teacher[f"blk.{layer}.attn_norm"]
        queries = teacher[f"blk.{layer}.attn_q"].reshape(teacher.heads, length, -1)[kept]
        yield f"{to}.self_attn.q_proj.weight", queries.reshape(-1, teacher.width)
        yield f"{to}.self_attn.k_proj.weight", teacher[f"blk.{layer}.attn_k"]
        yield f"{to}.self_attn.v_proj.weight", teacher[f"blk.{layer}.attn_v"]
        yield f"{to}.self_attn.o_proj.weight", fitted[:, : len(kept) * length]
        yield f"{to}.mamba.in_proj.weight", found["in_proj"]
        yield f"{to}.mamba.out_proj.weight", fitted[:, len(kept) * length :]
        yield f"{to}.mamba.conv1d.weight", found["conv"]
        yield f"{to}.mamba.conv1d.bias", found["bias"]
        for name in ("A_log", "D", "dt_bias"):
            yield f"{to}.mamba.{name}", found[name]
        yield f"{to}.pre_ff_layernorm.weight", teacher[f"blk.{layer}.ffn_norm"]
        for kind, matrix in mlp.items():
            yield f"{to}.feed_forward.{kind}_proj.weight", matrix
    yield "model.final_layernorm.weight", teacher["output_norm"]
    yield "lm_head.weight", teacher["token_embd"]


def tell(layer: int, given: np.ndarray, wanted: np.ndarray) -> None:
    """Print how much of what a layer should give it does not."""
    print(f"layer {layer}: {np.sum((given - wanted) ** 2) / np.sum(wanted**2):.3f} of the output is missed", flush=True)


def config_of(family: str, teacher: Teacher) -> dict[str, object]:
    """Return config.json."""
    shared = {k: v for k, v in teacher.config.items() if k not in ("attention_bias", "mlp_bias")}
    if family == "experts":
        return shared | {
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": NEURONS,
            "num_local_experts": EXPERTS, "num_experts_per_tok": USED, "sliding_window": None,
        }  # fmt: skip
    inner = len(RATES) * teacher.shared * teacher.length
    return shared | {
        "architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "tie_word_embeddings": False,
        "num_attention_heads": teacher.heads - teacher.shared, "mamba_d_ssm": inner, "mamba_d_head": teacher.length,
        "mamba_n_heads": len(RATES) * teacher.shared, "mamba_n_groups": teacher.shared,
        "mamba_d_state": teacher.length, "mamba_d_conv": TAPS, "mamba_conv_bias": True, "mamba_proj_bias": False,
        "mamba_rms_norm": False, "projectors_bias": False, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def text_of(tokenizer: Tokenizer) -> np.ndarray:
    """Return windows of the bundled calibration text and of Python's reference in turn, int64 [windows, tokens]."""
    bundled = "\n".join(part.text for part in corpus("default", "calibration").parts)
    reference = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    halves = []
    for text in (bundled, reference):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
        halves.append(windows[np.linspace(0, len(windows) - 1, WINDOWS // 2).astype(int)])
    return np.concatenate(halves)


def main() -> None:
    """Parse the command line and write the model; config.json last, so that its presence means a whole model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=("experts", "hybrid"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(args.teacher)
    tokens = text_of(Tokenizer.from_file(str(args.teacher / "tokenizer.json")))
    make = experts if args.family == "experts" else hybrid
    write_safetensors(args.out / "model.safetensors", make(teacher, tokens, args.seed))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (args.out / name).write_bytes((args.teacher / name).read_bytes())
    write_json(args.out / "config.json", config_of(args.family, teacher))


if __name__ == "__main__":
    main()
