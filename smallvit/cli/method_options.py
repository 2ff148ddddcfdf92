"""The settings of all methods of stage 1 as one group of options."""

from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter
from docstring_parser import parse_from_object

from smallvit.data.config import ViewsConfig
from smallvit.pretraining.config import METHODS
from smallvit.runs.config import PretrainConfig

OF_EVERY_METHOD = ("name", "views")


def _create_options(section: str, name_option: str) -> type:
    """Join the fields of all methods; each says whose it is.

    Defaults differ by method, so that an option that is not given is ``None`` here.

    Args:
        section: What the options start with.
        name_option: The option that names the method.
    """
    takers: dict[str, list[str]] = {}
    kinds: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name, config in METHODS.items():
        documented = {
            p.arg_name: p.description or ""
            for owner in reversed(config.__mro__[:-1])  # several may share the settings of a base
            for p in parse_from_object(owner).params
        }
        for key, kind in get_type_hints(config).items():  # bounds are checked with the recipe
            if key in OF_EVERY_METHOD:
                continue
            assert kinds.setdefault(key, kind) == kind, f"{name}.{key} has another type elsewhere"
            takers.setdefault(key, []).append(name)
            texts.setdefault(key, documented.get(key, ""))
    fields: list[Any] = [
        (
            "name",
            Annotated[
                str | None,
                Parameter(name=name_option, help=f"What is learned: {', '.join(METHODS)}."),
            ],
            field(default=None),
        ),
        (
            "views",
            Annotated[ViewsConfig, Parameter(name=f"{section}.views", show_default=False)],
            field(default_factory=ViewsConfig),
        ),
    ]
    for key, kind in kinds.items():
        text = f"[{', '.join(takers[key])}] {' '.join(texts[key].split())}"
        option = Parameter(name=f"{section}.{key.replace('_', '-')}", help=text)
        fields.append((key, Annotated[kind | None, option], field(default=None)))
    options = make_dataclass("MethodOptions", fields, frozen=True, kw_only=True)
    options.__module__ = __name__  # cyclopts takes what lies in ``types`` for a builtin
    # The star leaves each name as it is: ``--method`` is the name's, not the group's.
    return Parameter(name="*")(options)


MethodOptions = _create_options("--method", "--method")
_OfPretrain = _create_options("--pretrain.method", "--pretrain.method.name")


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(PretrainConfig):  # noqa: D101
    __doc__ = PretrainConfig.__doc__  # of ``smallvit run``, whose options carry their stage

    method: _OfPretrain = field(  # pyright: ignore[reportInvalidTypeForm]
        default_factory=_OfPretrain
    )
