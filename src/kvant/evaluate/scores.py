"""A score of any measure."""

from kvant.evaluate.score import VariantScore
from kvant.evaluate.vectors import EmbeddingScore

Score = VariantScore | EmbeddingScore
"""What was measured of a variant, told apart in documents by the field `measure`."""
