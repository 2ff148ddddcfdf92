"""How a folder of images is read: what its sub-folders are, named by the user or told by looks.

A guess is made only where nothing else can be meant. Where another reading is as likely, the guess
is said together with the setting that names it, and nothing is read.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.class_lists import SPLIT_NAMES, plural, some

FORMS = (
    "classes (each folder is a class, whatever its name), unlabelled, or the folders of the splits "
    "as in train=training_set,test=test_set, where a split that is not named is not read"
)
_ORDER = ("train", "val", "test")
# A word for a split, at the beginning of a name or behind what is no letter: test_set, seg_train.
_WORD = re.compile(
    r"(?<![a-z])(train(?:ing)?|val(?:id(?:ation)?)?|dev|eval(?:uation)?|test(?:ing)?)"
)
_WORDS = SPLIT_NAMES | {"dev": "val", "eval": "val", "evaluation": "val"}
# What else such a name says: that it is a folder of data.
_OF_DATA = ("", "set", "sets", "data", "dataset", "images", "imgs", "image", "pictures", "split")
_ANY = ("images", "imgs", "data", "all", "unlabelled")  # names that say nothing of what is inside


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout that the user named.

    Attributes:
        kind: ``classes``, ``unlabelled`` or ``splits``.
        splits: What each split is called, for ``splits``: a folder below the data's, a value of a
            table's column ``split``, a beginning of the names of files or arrays.
    """

    kind: Literal["classes", "unlabelled", "splits"]
    splits: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Folder:
    """A folder with its images.

    Attributes:
        images: Those that lie in it directly.
        folders: Its folders that hold images, at any depth.
    """

    images: int = 0
    folders: "dict[str, Folder]" = field(default_factory=dict)

    def at(self, path: str) -> "Folder | None":
        """Return the folder at a path below; ``None`` where it holds no image."""
        folder: Folder | None = self
        for part in filter(None, path.split("/")):
            folder = folder.folders.get(part) if folder else None
        return folder


def parse_layout(text: str | None) -> Layout | None:
    """Read ``data.layout``; ``None`` stands for a guess.

    Raises:
        ConfigError: If it is of none of ``FORMS``.
    """
    if text is None:
        return None
    if text.strip() in ("classes", "unlabelled"):
        return Layout(kind="classes" if text.strip() == "classes" else "unlabelled")
    entries = [entry.partition("=") for entry in re.split(r",\s*(?=\w+\s*=)", text)]
    splits = {
        SPLIT_NAMES.get(word.strip().lower(), ""): name.strip().replace("\\", "/").strip("/")
        for word, _, name in entries
    }
    folders = [name.split("/") for name in splits.values()]
    unclear = len(splits) < len(entries) or "" in splits or "train" not in splits
    if unclear or any(parts == [""] or ".." in parts for parts in folders):
        raise ConfigError(f"data.layout cannot be {text!r}: give {FORMS}")
    for name in splits.values():
        if any(other != name and f"{other}/".startswith(f"{name}/") for other in splits.values()):
            raise ConfigError(f"data.layout {text!r}: {name} holds the folder of another split")
    if len(set(splits.values())) < len(splits):
        raise ConfigError(f"data.layout {text!r} gives two splits one folder")
    return Layout(kind="splits", splits=splits)


def refuse_classes(layout: Layout | None, what: str) -> None:
    """Refuse the layout ``classes`` where there are no folders.

    Args:
        layout: As the user named it, if at all.
        what: What there is, for the message.

    Raises:
        ConfigError: If it is that one.
    """
    if layout is not None and layout.kind == "classes":
        raise ConfigError(f"data.layout classes is for folders of images, and {what}: leave it out")


def rows_by_split(
    where: str, values: Sequence[str], layout: Layout | None, place: Callable[[int], str]
) -> dict[str, list[int]]:
    """Sort the rows of a table by what their column ``split`` says.

    Args:
        where: The table, for messages.
        values: The column.
        layout: What it calls each split, where the user named that; other rows are not read.
        place: Names a row, for messages.

    Returns:
        Rows of each split that has some, in their order.

    Raises:
        DataError: If a value is no split's name, no row has one that was named, or none is train's.
    """
    if layout is not None and layout.kind == "splits":
        of_value = {name: split for split, name in layout.splits.items()}
        for name, split in of_value.items():
            if name not in values:
                raise DataError(
                    f"{where}: no row has the split {name!r}, which data.layout names as {split}; "
                    f"there are {some(sorted(set(values)))}"
                )
    else:
        of_value = {value: SPLIT_NAMES.get(value.lower()) for value in set(values)}
        for i, value in enumerate(values):
            if of_value[value] is None:
                raise DataError(
                    f"{place(i)}: unknown split {value!r}; known: {', '.join(SPLIT_NAMES)}: "
                    "correct it, or say what the splits are called, as in --data.layout "
                    "train=first,test=second"
                )
    rows: dict[str, list[int]] = {split: [] for split in _ORDER}
    for i, value in enumerate(values):
        split = of_value.get(value)
        if split is not None:
            rows[split].append(i)
    if not rows["train"]:
        raise DataError(
            f"{where}: no row has the split train: name the rows to train on train, or say what "
            "they are called, as in --data.layout train=test"
        )
    return {split: index for split, index in rows.items() if index}


def option(splits: Mapping[str, str]) -> str:
    """Return the option that names the folders of splits, as it is typed."""
    text = ",".join(f"{split}={splits[split]}" for split in sorted(splits, key=_ORDER.index))
    return f"--data.layout {shlex.quote(text)}"


def build_tree(names: Iterable[str]) -> Folder:
    """Sort images by their folders."""
    top = Folder()
    for path, count in Counter(name.rpartition("/")[0] for name in names).items():
        folder = top
        for part in filter(None, path.split("/")):
            folder = folder.folders.setdefault(part, Folder())
        folder.images += count
    return top


def guess_splits(path: Path, top: Folder) -> dict[str, str]:
    """Return the folder of each split; ``{"train": ""}`` where all lies in class folders.

    Args:
        path: The folder.
        top: Its images.

    Raises:
        DataError: If another layout is as likely; the message says which, and how to name it.
    """
    _stop_at_wrapper(path, top)
    found = _named_splits(top)
    splits = {split: found[split][0] for split in _ORDER if split in found}
    others = sorted(set(top.folders) - {name for names in found.values() for name in names})
    if not found:
        likely = _likely(others)
        if "train" in likely and len(likely) > 1:
            raise DataError(
                f"{path}: {some(sorted(likely.values()))} are called like splits: if they are, "
                f"{option(_deepest(top, likely))}; if they are classes, --data.layout classes"
            )
        _stop_at_shared_folders(path, top)
        _stop_at_copy(path, top)
        return {"train": ""}
    for names in found.values():
        if len(names) > 1:
            chosen = splits | {SPLIT_NAMES[names[1].lower()]: names[1]}
            raise DataError(
                f"{path} has both {' and '.join(names)}: keep one of them, or name the splits, as "
                f"in {option(chosen)}; if these are classes, --data.layout classes"
            )
    likely = _likely(top.folders)
    if "train" not in splits:
        only = next(iter(splits.values()))
        meant = f"add one, or train on {only}, {option({'train': only})}"
        if others:
            meant = "if these are classes, set --data.layout classes; else add one"
        if "train" in likely:
            meant = f"name it, {option({'train': likely['train']} | splits)}"
        there = ", ".join(sorted((*splits.values(), *others)))
        raise DataError(f"{path} has {there} but no train folder: {meant}")
    if others or top.images:
        outside = [*others, *([plural(top.images, "loose image")] if top.images else [])]
        readings = [
            "if all of these are classes, set --data.layout classes",
            f"to leave out what is no split, {option(likely | splits)}",
        ]
        if set(others) <= set(likely.values()):  # most likely splits as well
            readings.reverse()
        raise DataError(
            f"{path} has split folders ({', '.join(splits.values())}) and beside them "
            f"{some(outside)}: {'; '.join(readings)}"
        )
    _stop_at_wrapped_splits(path, top, splits)
    return splits


def plain_splits(top: Folder) -> dict[str, str]:
    """Return the folder of each split by its name alone, as older runs read their images.

    Their fingerprint goes by the order of the folders.
    """
    found = {split: names[0] for split, names in _named_splits(top).items()}
    return found if "train" in found else {"train": ""}


def _named_splits(top: Folder) -> dict[str, list[str]]:
    """Return the folders that have the name of a split, in the order of their names."""
    found: dict[str, list[str]] = {}
    for name in sorted(top.folders):
        if (split := SPLIT_NAMES.get(name.lower())) is not None:
            found.setdefault(split, []).append(name)
    return found


def find_splits(path: Path, top: Folder, layout: Layout) -> dict[str, str]:
    """Return the folder of each split of a layout that the user named.

    Raises:
        DataError: If one holds no image.
    """
    if layout.kind != "splits":
        return {"train": ""}
    for split, name in layout.splits.items():
        folder = top.at(name)
        if folder is None:
            there = ", ".join(_paths(top)) or "none"
            raise DataError(
                f"{path}: no image in {name}, which data.layout names as {split}; folders with "
                f"images: {there}"
            )
    return dict(layout.splits)


def _paths(top: Folder) -> Iterator[str]:
    """Yield folders with images, two levels deep."""
    for name, folder in sorted(top.folders.items()):
        yield name
        if len(folder.folders) == 1:
            yield f"{name}/{next(iter(folder.folders))}"


def _descend(folder: Folder) -> tuple[str, Folder]:
    """Go down while a folder holds one other and nothing else; return the path and the last."""
    parts = []
    while not folder.images and len(folder.folders) == 1:
        ((name, folder),) = folder.folders.items()
        parts.append(name)
    return "/".join(parts), folder


def _deepest(top: Folder, splits: Mapping[str, str]) -> dict[str, str]:
    """Go down each split's folder while it holds one other; drop splits without train's kind."""
    found = {split: (name, *_descend(top.folders[name])) for split, name in splits.items()}
    labelled = bool(found["train"][2].folders)
    return {
        split: f"{name}/{inside}" if inside and (inner.folders or not labelled) else name
        for split, (name, inside, inner) in found.items()
        if bool(inner.folders) or not labelled
    }


def _likely(names: Iterable[str]) -> dict[str, str]:
    """Return the folders that are called like splits: alike but for the word that says which."""
    alike: dict[tuple[str, str], dict[str, str]] = {}
    plain: dict[str, str] = {}
    for name in sorted(names):
        match = _WORD.search(name.lower())
        if match is None:
            continue
        before, after = name.lower()[: match.start()], name.lower()[match.end() :]
        alike.setdefault((before, after), {}).setdefault(_WORDS[match[1]], name)
        if not before and after.strip("_- ") in _OF_DATA:
            plain.setdefault(_WORDS[match[1]], name)
    groups = [group for group in (*alike.values(), plain) if "train" in group and len(group) > 1]
    return (groups or [plain])[0]


def _stop_at_wrapper(path: Path, top: Folder) -> None:
    """Stop where all lies in one folder that is no split, or that holds splits itself."""
    inside, inner = _descend(top)
    if not inside or not inner.folders:
        return
    split = SPLIT_NAMES.get(inside.partition("/")[0].lower())
    if split is not None and not _holds_splits(inner):
        return
    what = "splits" if _holds_splits(inner) else "classes or splits"
    raise DataError(
        f"{path} holds one folder, {inside}, which holds {plural(len(inner.folders), 'folder')} "
        f"({some(sorted(inner.folders))}): if these are the {what}, give it, --data "
        f"{shlex.quote(str(path / inside))}"
    )


def _holds_splits(folder: Folder) -> bool:
    names = [SPLIT_NAMES.get(name.lower()) for name in folder.folders]
    return len(names) > 1 and "train" in names and None not in names and not folder.images


def _stop_at_shared_folders(path: Path, top: Folder) -> None:
    """Stop where folders hold folders of the same names, as splits do and classes seldom."""
    deep: dict[str, set[str]] = {}
    for name, folder in sorted(top.folders.items()):
        inside, inner = _descend(folder)
        if len(inner.folders) > 1 and not inner.images:
            deep[f"{name}/{inside}" if inside else name] = set(inner.folders)
    if len(deep) < 2 or 2 * len(deep) < len(top.folders):
        return
    counts = Counter(name for folders in deep.values() for name in folders)
    shared = sorted(name for name, count in counts.items() if count > max(1, len(deep) // 2))
    if len(shared) < 2:
        return
    names = list(deep)
    one = f"--data {shlex.quote(str(path / names[0]))}"
    pair = option(dict(zip(("train", "test"), names, strict=False)))
    meant = f"probably the classes: name the splits, as in {pair}, or give {one}"
    if all(name.lower() in SPLIT_NAMES for name in shared):
        meant = f"splits: give one folder, as in {one}"
    raise DataError(
        f"{path}: {some(names)} hold the same folders ({some(shared)}), which are {meant}; if "
        f"{some(names, 2)} are classes, --data.layout classes; without labels, unlabelled"
    )


def _stop_at_copy(path: Path, top: Folder) -> None:
    """Stop where a folder holds folders called like its neighbours: a copy of all, mostly."""
    for name, folder in sorted(top.folders.items()):
        shared = sorted(set(folder.folders) & set(top.folders))
        if len(shared) > 1:
            raise DataError(
                f"{path}: {name} holds folders called like its neighbours ({some(shared)}), "
                f"probably a copy of them: remove it, or give it alone, --data "
                f"{shlex.quote(str(path / name))}; if it is a class, --data.layout classes"
            )


def _stop_at_wrapped_splits(path: Path, top: Folder, splits: Mapping[str, str]) -> None:
    """Stop where the train folder holds one folder that holds the classes, or all the images."""
    inside, inner = _descend(top.folders[splits["train"]])
    # The images of one folder that is called like the split, or like any folder, have no labels.
    likely = inside.rpartition("/")[2].lower() in (*_ANY, splits["train"].lower())
    if not inside or not (inner.folders or likely):
        return
    raise DataError(
        f"{path}: {splits['train']} holds one folder, {inside}, and no other: if its folders are "
        f"the classes, or its images have none, {option(_deepest(top, splits))}"
    )
