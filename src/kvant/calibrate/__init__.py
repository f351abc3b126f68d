"""What quantization should know of a model beyond its weights, measured on calibration text. Needs torch."""

from importlib.util import find_spec

from kvant.errors import MissingDependencyError

if find_spec("torch") is None:
    raise MissingDependencyError("torch: is not installed. Install it with: pip install 'kvant[calibrate]'")
