"""How long a generated token takes on the device in question, matrix by matrix: what keeps a budget of speed.

    seconds per token = overhead + sum over matrices of weights read * seconds per weight of their block type

On the machine at hand both come from the engine: seconds per weight from synthetic models of one type each
(runtime/decodetime.py), the overhead (attention, norms, threads that wait for each other) from one plain Q8_0 copy of
the model itself. Both are kept. For another device the bytes of a weight over the device's rates stand in
(devices/speed.py), and the overhead is nothing.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from kvant._version import __version__
from kvant.devices.active import read_share
from kvant.devices.detect import Machine
from kvant.devices.memory import EMBEDDING, LOOKED_UP, OUTPUT
from kvant.devices.profiles import Profile
from kvant.devices.speed import weight_seconds
from kvant.documents import JSON_ERRORS
from kvant.dtypes import BLOCK_TYPES, block_type
from kvant.evaluate.baselogits import engine_name
from kvant.files import atomic_write, cache_dir
from kvant.model import Model
from kvant.progress import SILENT, Progress
from kvant.quant.plan import Plan
from kvant.quant.presets import plan_preset
from kvant.recipes import cache
from kvant.recipes.goal import Budget
from kvant.recipes.targets.candidate import Candidate
from kvant.recipes.targets.gguf import kept
from kvant.runtime.decodetime import Effort, measure_weight_seconds
from kvant.runtime.engines.base import SPEED
from kvant.runtime.process import EngineProcess
from kvant.tensors import n_weights

REFERENCE = "Q8_0"
"""Preset of the copy whose speed shows the overhead: quick to encode, and every row of 32 weights takes it."""

REFERENCE_S = 4.0
"""Seconds spent on that copy."""

DEADLINE_SHARE = 0.98
"""Share of the time asked for that plans may be predicted to take; a variant that then measures slower is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that a generated token takes.

    Attributes:
        weight_s: Seconds per weight by block type.
        overhead_s: Seconds beside the products of matrices.
        is_measured: It was measured in the engine on the machine at hand.
    """

    weight_s: Mapping[str, float]
    overhead_s: float = 0.0
    is_measured: bool = False

    def seconds(self, model: Model, name: str, kind: str) -> float:
        """Seconds per token of a tensor stored as `kind`, of experts those used; 0 of vectors and of rows looked up."""
        tensor = model.tensors[name]
        is_table = name in LOOKED_UP and (name != EMBEDDING or OUTPUT in model.tensors)
        if len(tensor.shape) < 2 or is_table:
            return 0.0
        share = read_share(name, tensor.shape, model, is_tied=OUTPUT not in model.tensors)
        return share * n_weights(tensor) * self.weight_s[block_type(kind).name]

    def token_seconds(self, model: Model, types: Mapping[str, str]) -> float:
        """Predicted seconds per token of a plan."""
        return self.overhead_s + math.fsum(self.seconds(model, name, kind) for name, kind in types.items())

    def speed(self, model: Model, types: Mapping[str, str]) -> float:
        """Predicted tokens per second of a plan."""
        return 1 / max(1e-9, self.token_seconds(model, types))

    def shifted(self, seconds: float) -> "Pace":
        """Return the pace with so many more seconds of overhead."""
        return replace(self, overhead_s=self.overhead_s + seconds)

    def deadline(self, min_speed_tok_s: float) -> float:
        """Seconds per token that the products of matrices may take at a speed; 0 at least."""
        return max(0.0, DEADLINE_SHARE / min_speed_tok_s - self.overhead_s)


def deadline_of(pace: Pace | None, budget: Budget) -> float | None:
    """Seconds per token that the products of matrices may take by a budget; None where nothing limits them."""
    return pace.deadline(budget.min_speed_tok_s) if pace and budget.min_speed_tok_s else None


def pace_for(
    model: Model,
    device: Profile,
    machine: Machine,
    kinds: Iterable[str],
    *,
    threads: int,
    effort: Effort | None = None,
    progress: Progress = SILENT,
) -> Pace:
    """Measure the pace on the machine at hand, or predict it for another device.

    Args:
        model: The full-precision model.
        device: The device it will run on.
        machine: The machine at hand.
        kinds: Block types of matrices that matter.
        threads: Threads that variants are measured with.
        effort: Of timing block types.
        progress: Told of what is timed.

    Raises:
        EngineError: The engine fails on a block type.
    """
    if not device.is_here:
        return predicted_pace(device)
    reference = plan_preset(model, REFERENCE)
    needed = {*kinds, *matrix_types(model, reference)}
    weight_s = measured_weight_seconds(machine, needed, threads=threads, effort=effort, progress=progress)
    bare = Pace(weight_s=weight_s, is_measured=True)
    took = _reference_seconds(model, reference, machine, threads, progress)
    return bare.shifted(max(0.0, took - bare.token_seconds(model, reference.types)))


def predicted_pace(device: Profile) -> Pace:
    """Seconds per weight by a device's rates; never faster than `predict_speed`, whose two bounds hold for sums."""
    return Pace(
        weight_s={
            name: weight_seconds(
                kind, bandwidth_bytes_s=device.bandwidth_bytes_s, cores=device.cores, core_scale=device.core_scale
            )
            for name, kind in BLOCK_TYPES.items()
        }
    )


def matrix_types(model: Model, plan: Plan) -> set[str]:
    """Block types of a plan's matrices."""
    return {kind for name, kind in plan.types.items() if len(model.tensors[name].shape) > 1}


def measured_weight_seconds(
    machine: Machine,
    kinds: Iterable[str],
    *,
    threads: int,
    effort: Effort | None = None,
    progress: Progress = SILENT,
) -> dict[str, float]:
    """Return seconds per weight by block type, timing those that were not timed before on this machine."""
    key = cache.digest("decode", __version__, machine.cpu, machine.isa, engine_name(), threads)
    path = cache_dir("decode") / f"{key[:32]}.json"
    try:
        known = msgspec.json.decode(path.read_bytes(), type=dict[str, float])
    except (OSError, *JSON_ERRORS):
        known = {}
    missing = sorted(set(kinds) - set(known))
    if missing:
        progress.say(f"Timing {len(missing)} block types in the engine, once for this machine: about a second each.")
        known |= measure_weight_seconds(missing, threads=threads, effort=effort, progress=progress)
        with atomic_write(path, is_shared=True) as file:
            file.write(msgspec.json.encode(known))
    return known


def paced(candidates: Sequence[Candidate], model: Model, pace: Pace) -> list[Candidate]:
    """Return candidates with the speed that a measured pace predicts; as they are by a predicted one."""
    if not pace.is_measured:
        return list(candidates)
    return [msgspec.structs.replace(c, speed_tok_s=pace.speed(model, c.plan.types)) for c in candidates]


def _reference_seconds(model: Model, plan: Plan, machine: Machine, threads: int, progress: Progress) -> float:
    """Seconds per token of the reference copy at the depth that variants are timed at; kept."""
    key = cache.digest("pace", kept.variant_key(model, plan, None), machine.cpu, engine_name(), threads)
    path = cache_dir("decode") / f"{key[:32]}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=float)
    except (OSError, *JSON_ERRORS):
        pass
    file = kept.encoded(model, plan, threads=threads, progress=progress)
    took = math.inf
    with EngineProcess() as engine:
        engine.open(file, n_ctx=2 * SPEED.n_prompt, n_threads=threads)
        start = time.perf_counter()
        while took == math.inf or time.perf_counter() - start < REFERENCE_S:
            once = engine.speed(n_prompt=SPEED.n_prompt, n_generate=SPEED.n_generate, repeats=1)
            took = min(took, once.fastest_s)
    kept.forget(model, plan)
    with atomic_write(path, is_shared=True) as stored:
        stored.write(msgspec.json.encode(took))
    return took
