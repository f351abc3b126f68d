from kvant.recipes.optimize.facts import importance_in_words

FITTED, BOTH, PLAIN = (True, True), (False, True), (False, False)


def test_it_is_said_what_an_importance_file_was_used_for() -> None:
    assert importance_in_words("i", {"gguf": PLAIN}, is_calibrated=False) == []
    assert importance_in_words("i", {"gguf": PLAIN, "mlx": PLAIN}, is_calibrated=False) == [
        "i: mlx is encoded with it."
    ]
    for made in ({"gguf": BOTH, "mlx": FITTED}, {"mlx": FITTED, "gguf": BOTH}):
        (said,) = importance_in_words("i", made, is_calibrated=True)
        assert said.startswith("i: is used for presets of gguf alone; all else")
    (said,) = importance_in_words("i", {"mlx": FITTED}, is_calibrated=True)
    assert said.startswith("i: is not used; all else")
