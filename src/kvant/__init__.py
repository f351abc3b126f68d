"""kvant makes the best small version of a language model for a given device, proves how good it is, and ships it.

The functions here are the commands of the same name, with an underscore where Python has the word (`import_`, `list_`);
`recipes/optimize/pipeline.py` is the main path, top to bottom. docs/explanation/stability.md says what stays.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kvant._version import __version__

if TYPE_CHECKING:
    from kvant.allocate.options import Option as Option
    from kvant.devices.detect import Machine as Machine
    from kvant.devices.memory import RamPrediction as RamPrediction
    from kvant.devices.profiles import Profile as Profile
    from kvant.dtypes import BlockType as BlockType
    from kvant.errors import KvantError as KvantError
    from kvant.evaluate.baselogits import BaseLogits as BaseLogits
    from kvant.evaluate.score import VariantScore as VariantScore
    from kvant.evaluate.vectors import EmbeddingScore as EmbeddingScore
    from kvant.formats.open import open_model as open_model
    from kvant.hub.check import Check as Check
    from kvant.hub.collect import Collected as Collected
    from kvant.hub.jobs import Imported as Imported
    from kvant.hub.jobs import Listed as Listed
    from kvant.hub.jobs import Removed as Removed
    from kvant.hub.jobs import copy as copy
    from kvant.hub.jobs import export as export
    from kvant.hub.jobs import fsck as fsck
    from kvant.hub.jobs import gc as gc
    from kvant.hub.jobs import import_ as import_
    from kvant.hub.jobs import list_ as list_
    from kvant.hub.jobs import rm as rm
    from kvant.hub.jobs import show as show
    from kvant.hub.ledger import StoredModel as StoredModel
    from kvant.hub.manifest import ModelSettings as ModelSettings
    from kvant.hub.modelfile import Modelfile as Modelfile
    from kvant.hub.names import ModelName as ModelName
    from kvant.hub.pull import Pulled as Pulled
    from kvant.hub.pull import Wish as Wish
    from kvant.hub.pull import pull as pull
    from kvant.hub.sources.search import Found as Found
    from kvant.hub.sources.search import search as search
    from kvant.hub.store import Store as Store
    from kvant.kernels import decode as decode
    from kvant.kernels import encode as encode
    from kvant.metadata import Value as Value
    from kvant.model import Model as Model
    from kvant.progress import Progress as Progress
    from kvant.quant.curvature import Curvatures as Curvatures
    from kvant.quant.importance import Importance as Importance
    from kvant.quant.plan import Plan as Plan
    from kvant.quant.plan import read_plan as read_plan
    from kvant.quant.plan import write_plan as write_plan
    from kvant.quant.presets import plan_preset as plan_preset
    from kvant.recipes.advise import Advice as Advice
    from kvant.recipes.advise import AdviceRow as AdviceRow
    from kvant.recipes.advise import advise as advise
    from kvant.recipes.advise import advise_machine as advise_machine
    from kvant.recipes.companion import Companion as Companion
    from kvant.recipes.convert.convert import ConvertResult as ConvertResult
    from kvant.recipes.convert.convert import convert as convert
    from kvant.recipes.create import Making as Making
    from kvant.recipes.create import create as create
    from kvant.recipes.goal import Budget as Budget
    from kvant.recipes.goal import Goal as Goal
    from kvant.recipes.inspect.inspect import Inspection as Inspection
    from kvant.recipes.inspect.inspect import inspect as inspect
    from kvant.recipes.int8.quantize import Int8Result as Int8Result
    from kvant.recipes.int8.quantize import quantize_int8 as quantize_int8
    from kvant.recipes.measure.base import Floor as Floor
    from kvant.recipes.measure.bench import Benched as Benched
    from kvant.recipes.measure.bench import Timing as Timing
    from kvant.recipes.measure.bench import bench as bench
    from kvant.recipes.measure.calibration import Calibration as Calibration
    from kvant.recipes.measure.embeddings import VectorComparison as VectorComparison
    from kvant.recipes.measure.embeddings import evaluate_embeddings as evaluate_embeddings
    from kvant.recipes.measure.evaluate import Comparison as Comparison
    from kvant.recipes.measure.evaluate import evaluate as evaluate
    from kvant.recipes.measure.importance import Calibrated as Calibrated
    from kvant.recipes.measure.importance import calibrate as calibrate
    from kvant.recipes.measure.parity import Parity as Parity
    from kvant.recipes.measure.parity import parity as parity
    from kvant.recipes.measure.rerankers import RankComparison as RankComparison
    from kvant.recipes.measure.rerankers import evaluate_rerankers as evaluate_rerankers
    from kvant.recipes.optimize.pipeline import optimize as optimize
    from kvant.recipes.optimize.request import Request as Request
    from kvant.recipes.optimize.schema import read_recipe as read_recipe
    from kvant.recipes.optimize.schema import write_recipe as write_recipe
    from kvant.recipes.rebuild.lock import Lock as Lock
    from kvant.recipes.rebuild.rebuild import Rebuilt as Rebuilt
    from kvant.recipes.rebuild.rebuild import rebuild as rebuild
    from kvant.recipes.report.report import MeasuredVariant as MeasuredVariant
    from kvant.recipes.report.report import Report as Report
    from kvant.recipes.targets.base import Material as Material
    from kvant.recipes.targets.base import Target as Target
    from kvant.recipes.targets.base import Workshop as Workshop
    from kvant.recipes.targets.candidate import Candidate as Candidate
    from kvant.recipes.targets.candidate import Matrix as Matrix
    from kvant.recipes.targets.gguf.write import QuantizeResult as QuantizeResult
    from kvant.recipes.targets.gguf.write import predict_size as predict_size
    from kvant.recipes.targets.gguf.write import quantize as quantize
    from kvant.recipes.targets.limits import Limits as Limits
    from kvant.recipes.targets.mlx.write import MLXResult as MLXResult
    from kvant.recipes.targets.mlx.write import to_mlx as to_mlx
    from kvant.recipes.targets.onnx.transcode import ConvertedDecoder as ConvertedDecoder
    from kvant.recipes.targets.onnx.transcode import convert_decoder as convert_decoder
    from kvant.recipes.targets.onnx.write import DecoderResult as DecoderResult
    from kvant.recipes.targets.onnx.write import quantize_decoder as quantize_decoder
    from kvant.recipes.targets.preset import Written as Written
    from kvant.recipes.targets.preset import write_preset as write_preset
    from kvant.runtime.engine import Engine as Engine
    from kvant.runtime.engine import Opened as Opened
    from kvant.runtime.engines.base import Artifact as Artifact
    from kvant.runtime.engines.base import EngineSpec as EngineSpec
    from kvant.runtime.engines.base import SpeedRuns as SpeedRuns
    from kvant.runtime.messages import Measured as Measured
    from kvant.runtime.tokenizers import Questions as Questions
    from kvant.runtime.tokenizers import Spoken as Spoken

_HOMES = {
    "Advice": "kvant.recipes.advise",
    "AdviceRow": "kvant.recipes.advise",
    "Artifact": "kvant.runtime.engines.base",
    "BaseLogits": "kvant.evaluate.baselogits",
    "Benched": "kvant.recipes.measure.bench",
    "BlockType": "kvant.dtypes",
    "Budget": "kvant.recipes.goal",
    "Calibrated": "kvant.recipes.measure.importance",
    "Calibration": "kvant.recipes.measure.calibration",
    "Candidate": "kvant.recipes.targets.candidate",
    "Check": "kvant.hub.check",
    "Collected": "kvant.hub.collect",
    "Companion": "kvant.recipes.companion",
    "Comparison": "kvant.recipes.measure.evaluate",
    "ConvertResult": "kvant.recipes.convert.convert",
    "ConvertedDecoder": "kvant.recipes.targets.onnx.transcode",
    "Curvatures": "kvant.quant.curvature",
    "DecoderResult": "kvant.recipes.targets.onnx.write",
    "EmbeddingScore": "kvant.evaluate.vectors",
    "Engine": "kvant.runtime.engine",
    "EngineSpec": "kvant.runtime.engines.base",
    "Floor": "kvant.recipes.measure.base",
    "Found": "kvant.hub.sources.search",
    "Goal": "kvant.recipes.goal",
    "Importance": "kvant.quant.importance",
    "Imported": "kvant.hub.jobs",
    "Inspection": "kvant.recipes.inspect.inspect",
    "Int8Result": "kvant.recipes.int8.quantize",
    "KvantError": "kvant.errors",
    "Limits": "kvant.recipes.targets.limits",
    "Listed": "kvant.hub.jobs",
    "Lock": "kvant.recipes.rebuild.lock",
    "MLXResult": "kvant.recipes.targets.mlx.write",
    "Machine": "kvant.devices.detect",
    "Making": "kvant.recipes.create",
    "Material": "kvant.recipes.targets.base",
    "Matrix": "kvant.recipes.targets.candidate",
    "Measured": "kvant.runtime.messages",
    "MeasuredVariant": "kvant.recipes.report.report",
    "Model": "kvant.model",
    "ModelName": "kvant.hub.names",
    "ModelSettings": "kvant.hub.manifest",
    "Modelfile": "kvant.hub.modelfile",
    "Opened": "kvant.runtime.engine",
    "Option": "kvant.allocate.options",
    "Parity": "kvant.recipes.measure.parity",
    "Plan": "kvant.quant.plan",
    "Profile": "kvant.devices.profiles",
    "Progress": "kvant.progress",
    "Pulled": "kvant.hub.pull",
    "QuantizeResult": "kvant.recipes.targets.gguf.write",
    "Questions": "kvant.runtime.tokenizers",
    "RamPrediction": "kvant.devices.memory",
    "Rebuilt": "kvant.recipes.rebuild.rebuild",
    "Removed": "kvant.hub.jobs",
    "Report": "kvant.recipes.report.report",
    "Request": "kvant.recipes.optimize.request",
    "SpeedRuns": "kvant.runtime.engines.base",
    "Spoken": "kvant.runtime.tokenizers",
    "Store": "kvant.hub.store",
    "StoredModel": "kvant.hub.ledger",
    "Target": "kvant.recipes.targets.base",
    "Timing": "kvant.recipes.measure.bench",
    "Value": "kvant.metadata",
    "VariantScore": "kvant.evaluate.score",
    "RankComparison": "kvant.recipes.measure.rerankers",
    "VectorComparison": "kvant.recipes.measure.embeddings",
    "evaluate_rerankers": "kvant.recipes.measure.rerankers",
    "Wish": "kvant.hub.pull",
    "Workshop": "kvant.recipes.targets.base",
    "Written": "kvant.recipes.targets.preset",
    "advise": "kvant.recipes.advise",
    "advise_machine": "kvant.recipes.advise",
    "bench": "kvant.recipes.measure.bench",
    "calibrate": "kvant.recipes.measure.importance",
    "convert": "kvant.recipes.convert.convert",
    "convert_decoder": "kvant.recipes.targets.onnx.transcode",
    "copy": "kvant.hub.jobs",
    "create": "kvant.recipes.create",
    "decode": "kvant.kernels",
    "encode": "kvant.kernels",
    "evaluate": "kvant.recipes.measure.evaluate",
    "evaluate_embeddings": "kvant.recipes.measure.embeddings",
    "export": "kvant.hub.jobs",
    "fsck": "kvant.hub.jobs",
    "gc": "kvant.hub.jobs",
    "import_": "kvant.hub.jobs",
    "inspect": "kvant.recipes.inspect.inspect",
    "list_": "kvant.hub.jobs",
    "open_model": "kvant.formats.open",
    "optimize": "kvant.recipes.optimize.pipeline",
    "parity": "kvant.recipes.measure.parity",
    "plan_preset": "kvant.quant.presets",
    "predict_size": "kvant.recipes.targets.gguf.write",
    "pull": "kvant.hub.pull",
    "quantize": "kvant.recipes.targets.gguf.write",
    "quantize_decoder": "kvant.recipes.targets.onnx.write",
    "quantize_int8": "kvant.recipes.int8.quantize",
    "read_plan": "kvant.quant.plan",
    "read_recipe": "kvant.recipes.optimize.schema",
    "rebuild": "kvant.recipes.rebuild.rebuild",
    "rm": "kvant.hub.jobs",
    "search": "kvant.hub.sources.search",
    "show": "kvant.hub.jobs",
    "to_mlx": "kvant.recipes.targets.mlx.write",
    "write_plan": "kvant.quant.plan",
    "write_preset": "kvant.recipes.targets.preset",
    "write_recipe": "kvant.recipes.optimize.schema",
}

__all__ = [
    "Advice", "AdviceRow", "Artifact", "BaseLogits", "Benched", "BlockType", "Budget", "Calibrated", "Calibration",
    "Candidate", "Check", "Collected", "Companion", "Comparison", "ConvertResult", "ConvertedDecoder", "Curvatures",
    "DecoderResult", "EmbeddingScore", "Engine", "EngineSpec", "Floor", "Found", "Goal", "Importance", "Imported",
    "Inspection", "Int8Result", "KvantError", "Limits", "Listed", "Lock", "MLXResult", "Machine", "Making",
    "Material", "Matrix", "Measured", "MeasuredVariant", "Model", "ModelName", "ModelSettings", "Modelfile", "Opened",
    "Option", "Parity", "Plan", "Profile", "Progress", "Pulled", "QuantizeResult", "Questions", "RamPrediction",
    "RankComparison", "Rebuilt", "Removed", "Report", "Request", "SpeedRuns", "Spoken", "Store", "StoredModel",
    "Target", "Timing", "Value", "VariantScore", "VectorComparison", "Wish", "Workshop", "Written", "__version__",
    "advise", "advise_machine", "bench", "calibrate", "convert", "convert_decoder", "copy", "create", "decode",
    "encode", "evaluate", "evaluate_embeddings", "evaluate_rerankers", "export", "fsck", "gc", "import_", "inspect",
    "list_", "open_model", "optimize", "parity", "plan_preset", "predict_size", "pull", "quantize",
    "quantize_decoder", "quantize_int8", "read_plan", "read_recipe", "rebuild", "rm", "search", "show", "to_mlx",
    "write_plan", "write_preset", "write_recipe",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import kvant` costs nothing."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'kvant' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)


class _Face(ModuleType):
    """This module: packages inside it that are called as a function (`kvant.evaluate`) do not take the name from it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
