import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest

from smallvit.core.config import Layer, Range, find_errors, merge, nest, resolve, to_plain
from smallvit.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimSection:
    lr: Annotated[float, Range(gt=0, le=1)] = 0.1
    steps: Annotated[int, Range(ge=1)] = 10
    betas: Annotated[tuple[float, float], Range(ge=0, lt=1)] = (0.9, 0.99)
    clip: Annotated[float | None, Range(gt=0)] = 3.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError(f"optim.low ({self.low}) is above optim.high ({self.high})")


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    optim: OptimSection = field(default_factory=OptimSection)
    kind: Literal["cosine", "constant"] = "cosine"
    name: str = "run"
    compile: bool = False
    path: Path | None = None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Views:
    num: Annotated[int, Range(ge=1)] = 8
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Near:
    name: Literal["near"] = "near"
    views: Views = field(default_factory=Views)
    temp: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Far:
    name: Literal["far"] = "far"
    views: Views = field(default_factory=lambda: Views(num=2, scale=0.5))
    ratio: Annotated[float, Range(gt=0, lt=1)] = 0.75


@dataclass(frozen=True, kw_only=True)
class StageSection:
    method: Near | Far = field(default_factory=lambda: Near(temp=0.3))
    steps: int = 1


@dataclass(frozen=True, kw_only=True)
class Tagged:
    stage: StageSection = field(default_factory=lambda: StageSection(steps=5))


def tagged(*methods: dict) -> Near | Far:
    return resolve(Tagged, layers(*({"stage": {"method": m}} for m in methods))).stage.method


def layers(*values: dict) -> list[Layer]:
    names = ("recipe.yaml", "command line", "third")
    return [Layer(source=name, values=v) for name, v in zip(names, values, strict=False)]


def one(**values) -> SampleConfig:
    return resolve(SampleConfig, layers(values))


def test_no_layer_gives_the_defaults():
    assert resolve(SampleConfig, []) == SampleConfig()


def test_the_last_layer_wins_and_the_rest_of_a_section_stays():
    config = resolve(
        SampleConfig,
        layers({"optim": {"lr": 0.5, "steps": 3}}, {"optim": {"lr": 0.25}}, {"name": "b"}),
    )
    assert (config.optim.lr, config.optim.steps, config.name) == (0.25, 3, "b")


def test_merge_leaves_its_arguments_alone():
    base = {"a": {"b": 1}}
    assert merge(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_nest_turns_dotted_keys_into_sections():
    assert nest({"optim.lr": 1.0, "optim.steps": 2, "name": "x"}) == {
        "optim": {"lr": 1.0, "steps": 2},
        "name": "x",
    }


def test_nest_merges_a_section_with_a_dotted_key_of_it_in_either_order():
    section, dotted = {"optim": {"lr": 1.0}}, {"optim.steps": 2}
    expected = {"optim": {"lr": 1.0, "steps": 2}}
    assert nest(section | dotted) == expected
    assert nest(dotted | section) == expected
    assert section == {"optim": {"lr": 1.0}}


def test_plain_values_of_a_config_resolve_to_it_again():
    config = one(
        optim={"lr": 0.5, "betas": [0.5, 0.75], "clip": None},
        path="a/b",
        sizes=[1, 2],
        compile=True,
    )
    plain = json.loads(json.dumps(to_plain(config)))
    assert one(**plain) == config


def test_a_number_that_yaml_reads_as_text_is_a_float():
    assert one(optim={"lr": "1e-3"}).optim.lr == 1e-3


def test_a_whole_number_is_taken_for_a_float_and_becomes_one():
    lr = one(optim={"lr": 1}).optim.lr
    assert lr == 1.0
    assert isinstance(lr, float)


def test_null_is_taken_where_the_value_is_optional():
    assert one(optim={"clip": None}).optim.clip is None


def test_a_list_becomes_a_tuple_and_text_a_path():
    config = one(sizes=[3, 4], path="x")
    assert config.sizes == (3, 4)
    assert config.path == Path("x")


def test_bounds_of_a_range_are_open_or_closed_as_named():
    assert [Range(gt=0, le=1).admits(x) for x in (0, 0.5, 1, 1.5)] == [False, True, True, False]
    assert [Range(ge=0, lt=1).admits(x) for x in (-1, 0, 0.5, 1)] == [False, True, True, False]


def test_unknown_key_names_source_key_value_and_the_nearest():
    with pytest.raises(
        ConfigError, match=r"recipe\.yaml: unknown key 'optim\.lrr' \(value 0\.5\).*mean 'lr'"
    ):
        one(optim={"lrr": 0.5})


def test_unknown_section_names_those_there_are():
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'.*known: compile, kind, name, optim"):
        one(zzz={"a": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lr": 0}}, r"optim\.lr: must be > 0 and <= 1, got 0"),
        ({"optim": {"lr": 2.0}}, r"optim\.lr: must be > 0 and <= 1, got 2\.0"),
        ({"optim": {"lr": float("nan")}}, r"optim\.lr: must be a finite number, got nan"),
        ({"optim": {"lr": ".nan"}}, r"optim\.lr: must be a finite number, got '\.nan'"),
        ({"optim": {"lr": float("inf")}}, r"optim\.lr: must be a finite number, got inf"),
        ({"optim": {"lr": True}}, r"optim\.lr: must be a finite number, got True"),
        ({"optim": {"lr": [1]}}, r"optim\.lr: must be a finite number, got \[1\]"),
        ({"optim": {"lr": None}}, r"optim\.lr: must be a finite number, got None"),
        ({"optim": {"steps": True}}, r"optim\.steps: must be a whole number, got True"),
        ({"optim": {"steps": "3"}}, r"optim\.steps: must be a whole number, got '3'"),
        ({"optim": {"steps": 3.0}}, r"optim\.steps: must be a whole number, got 3\.0"),
        ({"optim": {"steps": 0}}, r"optim\.steps: must be >= 1, got 0"),
        ({"optim": {"clip": 0}}, r"optim\.clip: must be > 0, got 0"),
        ({"optim": {"betas": [0.9]}}, r"optim\.betas: must have 2 entries, got \[0\.9\]"),
        ({"optim": {"betas": 0.9}}, r"optim\.betas: must be a list, got 0\.9"),
        ({"optim": {"betas": [0.9, 1]}}, r"optim\.betas: must be >= 0 and < 1, got \[0\.9, 1\]"),
        ({"sizes": [1, "2"]}, r"sizes: must be a whole number, got '2'"),
        ({"compile": 1}, r"compile: must be true or false, got 1"),
        ({"compile": "true"}, r"compile: must be true or false, got 'true'"),
        ({"name": 3}, r"name: must be a string, got 3"),
        ({"path": 3}, r"path: must be a path, got 3"),
        ({"kind": "cosin"}, r"kind: cannot be 'cosin'; did you mean 'cosine'\?"),
        ({"kind": ["cosine"]}, r"kind: cannot be \['cosine'\]"),
        ({"optim": 3}, r"recipe\.yaml: optim must be a mapping, got 3"),
        ({"optim": None}, r"recipe\.yaml: optim must be a mapping, got None"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_or_range_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        resolve(SampleConfig, layers(values))


def test_a_whole_number_beyond_every_float_is_refused():
    with pytest.raises(ConfigError, match=r"optim\.lr: must be a finite number, got 1000"):
        one(optim={"lr": 10**400})


def test_every_bad_value_is_listed_at_once_with_its_layer():
    found = list(
        find_errors(
            SampleConfig,
            layers({"optim": {"lr": -1, "steps": "3"}, "kind": "x"}, {"nam": "y"}),
        )
    )
    starts = ["recipe.yaml: optim.lr", "recipe.yaml: optim.steps", "recipe.yaml: kind"]
    starts += ["command line: unknown key 'nam'"]
    assert all(m.startswith(s) for m, s in zip(found, starts, strict=True))


def test_values_that_clash_are_blamed_on_the_layer_that_brought_the_last():
    with pytest.raises(ConfigError, match=r"^command line: optim\.low \(2\.0\) is above"):
        resolve(
            SampleConfig, layers({"optim": {"high": 1.5}}, {"optim": {"low": 2}}, {"name": "x"})
        )


def test_values_that_a_later_layer_reconciles_are_no_error():
    config = resolve(SampleConfig, layers({"optim": {"low": 2}}, {"optim": {"high": 3}}))
    assert (config.optim.low, config.optim.high) == (2.0, 3.0)


def test_a_section_of_several_kinds_is_chosen_by_its_name():
    assert tagged({"name": "far", "ratio": 0.5}) == Far(ratio=0.5)
    assert tagged({"name": "near", "temp": 0.5}) == Near(temp=0.5)


def test_a_later_layer_may_choose_the_kind_for_settings_of_an_earlier_one():
    assert tagged({"ratio": 0.5}, {"name": "far"}) == Far(ratio=0.5)


def test_without_a_name_the_section_is_the_default_and_keeps_its_values():
    assert tagged({}) == tagged({"name": "near"}) == Near(temp=0.3)
    assert tagged({"views": {"num": 3}}) == Near(temp=0.3, views=Views(num=3))


def test_what_another_kind_leaves_out_is_its_own_and_not_the_default_kind_s():
    assert tagged({"name": "far"}) == Far()
    assert tagged({"name": "far", "views": {"num": 4}}).views == Views(num=4, scale=0.5)


def test_what_a_section_leaves_out_is_what_it_has_where_it_stands():
    config = resolve(Tagged, layers({"stage": {"method": {"name": "far"}}}))
    assert config.stage.steps == 5


def test_a_key_of_another_kind_is_refused_with_its_file():
    with pytest.raises(ConfigError, match=r"^recipe\.yaml: unknown key 'stage\.method\.temp'"):
        tagged({"temp": 0.5}, {"name": "far"})
    with pytest.raises(ConfigError, match=r"^command line: unknown key 'stage\.method\.ratio'"):
        tagged({"name": "near"}, {"ratio": 0.5})


@pytest.mark.parametrize("name", [["near"], {"near": 1}, 3])
def test_a_kind_that_is_no_text_is_refused(name):
    with pytest.raises(ConfigError, match=r"stage\.method\.name: cannot be"):
        resolve(Tagged, layers({"stage": {"method": {"name": name}}}))


def test_a_kind_that_does_not_exist_suggests_the_nearest():
    with pytest.raises(
        ConfigError, match=r"stage\.method\.name: cannot be 'fra'; .*'far'\? known: far, near"
    ):
        tagged({"name": "fra"})


@pytest.mark.parametrize(
    ("value", "said"),
    [(3, r"stage\.method must be a mapping"), ({"ratio": 2}, r"stage\.method\.ratio: must be > 0")],
)
def test_a_bad_value_in_a_section_of_several_kinds_names_the_key(value, said):
    with pytest.raises(ConfigError, match=rf"^command line: {said}"):
        tagged({"name": "far"}, value)


def test_plain_values_of_a_tagged_config_resolve_to_it_again():
    config = resolve(Tagged, layers({"stage": {"method": {"name": "far", "ratio": 0.5}}}))
    assert resolve(Tagged, layers(json.loads(json.dumps(to_plain(config))))) == config


@dataclass(frozen=True, kw_only=True)
class Leaky:
    allow_leak: bool = False


@dataclass(frozen=True, kw_only=True)
class Staged:
    data: Leaky = field(default_factory=Leaky)
    stage: OptimSection = field(default_factory=OptimSection)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"stage": {"allow_leak": True}}, True),
        ({"stage": {"allow_leak": False}, "data": {"allow_leak": True}}, True),
        ({"stage": {"allow_leak": False}}, False),
    ],
)
def test_a_setting_that_each_stage_had_once_is_read_where_it_stands_today(values, expected):
    layer = Layer(source="old.yaml", values=values)
    assert resolve(Staged, [layer]) == Staged(data=Leaky(allow_leak=expected))
