"""MLX in a process of its own: `python mlx_worker.py SHARED`, one JSON object a line in and out.

It runs in whatever environment has mlx-lm, where kvant need not be installed, so it imports nothing of kvant. The model
computes in float32: then it is the weights that are compared, and MLX's CPU kernels are slow in 16 bits.
"""

import json
import mmap
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def main() -> None:
    """Answer requests until standard input ends."""
    import mlx.core as mx
    import numpy as np

    shared = int(sys.argv[1])  # descriptor of a file that its owner makes large enough
    before = peak_rss_bytes()
    model: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "open":
                model, answer = _open(Path(request["path"]))
            elif request["do"] == "logits":
                ids = mx.array(request["ids"])[None]
                rows = model(ids)[0, request["first"] :].astype(mx.float32)
                room = np.frombuffer(mmap.mmap(shared, 0), np.float32, count=rows.size)
                room.reshape(rows.shape)[:] = np.asarray(rows)
                answer = {"rows": rows.shape[0]}
            else:
                answer = {**_speed(model, request), "rss_before_bytes": before, "rss_bytes": peak_rss_bytes()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map

    sys.modules["torch"] = None  # type: ignore[assignment]  # else transformers imports it: a second, for nothing here
    from mlx_lm.utils import get_total_parameters, load_model

    started = time.perf_counter()
    model, _ = load_model(path)
    flat: Any = tree_flatten(model.parameters())
    stored = sum(value.nbytes for _, value in flat)
    count = get_total_parameters(model)

    def widened(value: Any) -> Any:
        return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value

    model.update(tree_map(widened, model.parameters()))
    mx.eval(model.parameters())
    n_vocab = model(mx.array([[0]])).shape[-1]
    return model, {
        "n_vocab": n_vocab, "n_params": count, "tensor_bytes": stored, "load_s": time.perf_counter() - started,
    }  # fmt: skip


def _speed(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    prompts, tokens = [], []
    for _ in range(request["repeats"]):
        cache = make_prompt_cache(model)
        started = time.perf_counter()
        logits = model(mx.array([[1] * request["n_prompt"]]), cache=cache)[:, -1]
        mx.eval(logits)
        prompts.append(request["n_prompt"] / (time.perf_counter() - started))
        for _ in range(request["n_generate"]):
            started = time.perf_counter()
            logits = model(mx.argmax(logits, axis=-1)[None], cache=cache)[:, -1]
            mx.eval(logits)
            tokens.append(time.perf_counter() - started)
    return {
        "pp_tok_s": statistics.median(prompts), "tg_tok_s": 1 / statistics.median(tokens), "fastest_s": min(tokens),
    }  # fmt: skip


def peak_rss_bytes() -> int:
    """Return the most resident memory this program has had, bytes.

    What getrusage says on Linux begins with the memory of the process that started this one.
    """
    if STATUS.is_file():
        lines = STATUS.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
