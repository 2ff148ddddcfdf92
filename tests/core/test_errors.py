import pytest

from smallvit.core.errors import (
    CollapsedError,
    ConfigError,
    DataError,
    DivergedError,
    InterruptedRunError,
    SmallViTError,
    UnknownNameError,
    suggest,
)


def test_each_error_has_its_exit_code():
    codes = {SmallViTError: 1, ConfigError: 2, UnknownNameError: 2, DataError: 3}
    codes |= {DivergedError: 4, CollapsedError: 4}
    assert {error: error.exit_code for error in codes} == codes


def test_interruption_exits_with_128_plus_the_signal():
    assert InterruptedRunError(15, "continue it").exit_code == 143


def test_suggestion_names_the_nearest_and_lists_the_known_in_order():
    assert suggest("lrr", ["wd", "lr"]) == "; did you mean 'lr'? known: lr, wd"


def test_without_a_near_name_only_the_known_are_listed():
    assert suggest("zzz", ["b", "a"]) == "; known: a, b"


def test_a_long_list_is_cut_and_counted():
    assert suggest("zzz", [f"n{i:02}" for i in range(30)]).endswith("n15 and 14 more")


def test_beside_a_near_name_a_long_list_is_left_out():
    assert suggest("n-11x", [f"n{i:02}" for i in range(30)]) == "; did you mean 'n11'?"


def test_where_a_command_lists_them_it_is_named_instead():
    error = UnknownNameError("model", "zzz", ["vit_tiny"])
    assert str(error) == "unknown model 'zzz'; `smallvit models` lists them"


def test_unknown_name_says_what_kind_of_name_it_was():
    with pytest.raises(ConfigError, match="unknown model 'vit_tiy'; did you mean 'vit_tiny'"):
        raise UnknownNameError("model", "vit_tiy", ["vit_tiny", "swin_tiny"])


def test_divergence_names_step_and_metrics():
    error = DivergedError(7, {"loss": float("nan"), "lr": 0.001})
    assert "at step 7 (loss nan, lr 0.001)" in str(error)
    assert error.step == 7


def test_collapse_names_step_finding_and_remedy_in_one_line():
    error = CollapsedError(7, "the features are the same (features/std 0.001)", "lower optim.lr")
    assert str(error) == (
        "training collapsed by step 7: the features are the same (features/std 0.001); "
        "lower optim.lr"
    )
    assert error.step == 7
