"""Files that hold no named inputs are refused with what to save instead."""

from pathlib import Path

import numpy as np
import pytest

from kvant.errors import FormatError
from kvant.recipes.int8.feeds import read_feeds


def test_one_array_without_a_name_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 8), np.float32))
    with pytest.raises(FormatError, match=r"is no \.npz file\. Save named inputs"):
        read_feeds(tmp_path / "x.npy", ())
