"""Reader of folders of images: class folders, split folders above them, images without labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from smallvit.core import places
from smallvit.core.errors import DataError
from smallvit.data.files.class_lists import SPLIT_NAMES, check_class_lists, plural, some
from smallvit.data.files.elsewhere import advice_for
from smallvit.data.files.images import UNREAD_SUFFIXES
from smallvit.data.files.layout import (
    Layout,
    build_tree,
    find_splits,
    guess_splits,
    option,
    plain_splits,
)
from smallvit.data.files.sources import (
    Listing,
    Source,
    file_split,
    files_key,
    own_source,
    printable,
)
from smallvit.data.files.walk import LEFT_BY_SYSTEMS, Walk, walk


@dataclass
class _Found:
    """The images of each split, by class folder, and those in none.

    Attributes:
        roots: Folder of each split.
        classes: Images of each class folder, by split.
        loose: Images in no class folder, by split.
        notes: What is left out, and why.
    """

    roots: dict[str, str]
    classes: dict[str, dict[str, list[str]]]
    loose: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


def open_folder(path: Path, found: Walk, layout: Layout | None, *, sure: bool = True) -> Source:
    """Open a folder of images.

    Args:
        path: The folder.
        found: What lies below it, of the suffixes of ``images.py``.
        layout: As the user named it; ``None`` guesses.
        sure: Stop where a guess could be wrong.

    Raises:
        DataError: If it has no images, or they cannot be sorted into classes and splits.
    """
    names = [file.name for file in found.files]
    unread = [name for name in names if name.lower().endswith(_UNREAD)]
    if unread:
        raise DataError(
            f"{path} has {plural(len(unread), 'image')} in a format that is not read (such as "
            f"{unread[0]}): convert to PNG or JPEG, or remove"
        )
    if not names:
        raise DataError(
            f"{path} has no images{_other_files(path, advise=True)}: give a folder with a folder "
            f"of images for each class{tables_beside(path)}"
        )
    sorted_in = _sort(path, names, layout, sure=sure)
    class_names: tuple[str, ...] = ()
    if not sorted_in.classes["train"] and sorted_in.loose["train"]:
        roots = sorted_in.roots
        others = [root for split, root in roots.items() if split != "train"]
        if others:
            sorted_in.notes.append(
                f"left out: {', '.join(others)}, since the images of {roots['train']} lie in "
                "no class folders; if these folders are the classes, set --data.layout classes"
            )
        beside = tables_beside(path)
        if beside and layout is None:
            sorted_in.notes.append(f"without labels{beside}, if it has the classes")
        sorted_in.classes = {"train": {"": sorted_in.loose["train"]}}
    else:
        if layout is None:
            _leave_out_unlabeled(sorted_in)
        results = [*found.written, *found.drawn]
        class_names = _check_class_folders(path, sorted_in, results)

    def list_images() -> Listing:
        splits = {}
        for split, classes in sorted_in.classes.items():
            parts = [classes[label] for label in sorted(classes)]
            labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
            splits[split] = file_split(path, list(chain(*parts)), labels if class_names else None)
        return Listing(class_names=tuple(map(printable, class_names)), splits=splits)

    kind = "folder of images"
    if class_names:
        roots = [root for root in sorted_in.roots.values() if root]
        kind = f"split folders {', '.join(roots)}" if roots else "class folders"
    return own_source(
        path.resolve(),
        kind,
        ("folder", files_key(found.files)),
        list_images,
        layout=layout,
        notes=(*sorted_in.notes, *found.notes),
    )


_UNREAD = tuple(UNREAD_SUFFIXES)


def _sort(path: Path, names: Sequence[str], layout: Layout | None, *, sure: bool) -> _Found:
    """Sort images by split and class folder."""
    top = build_tree(names)
    if layout is not None and layout.kind == "unlabelled":
        return _Found({"train": ""}, {"train": {}}, {"train": list(names)})
    if layout is not None:
        roots = find_splits(path, top, layout)
    else:
        roots = guess_splits(path, top) if sure else plain_splits(top)
    notes: list[str] = []
    if layout is None and "" not in roots.values():
        notes = [
            f"left out: {entry.name}, which has no images"
            for entry in sorted(path.iterdir())
            if entry.is_dir()
            and entry.name.lower() in SPLIT_NAMES
            and entry.name not in top.folders
        ]
    found = _Found(
        roots, {split: {} for split in roots}, {split: [] for split in roots}, notes=notes
    )
    outside: list[str] = []
    starts = [(split, f"{root}/" if root else "") for split, root in roots.items()]
    for name in names:
        for split, start in starts:
            if not name.startswith(start):
                continue
            label, slash, _ = name[len(start) :].partition("/")
            if slash:
                found.classes[split].setdefault(label, []).append(name)
            else:
                found.loose[split].append(name)
            break
        else:
            outside.append(name)
    if outside:
        found.notes.append(
            f"left out: {plural(len(outside), 'image')} outside the folders of data.layout "
            f"(such as {outside[0]})"
        )
    return found


def _leave_out_unlabeled(found: _Found) -> None:
    """Leave out the splits whose images have no labels, as of a competition's test folder."""
    for split in [split for split in found.roots if split != "train"]:
        classes, loose = found.classes[split], found.loose[split]
        alone = list(classes) if len(classes) == 1 else []
        if classes and (loose or not alone or alone[0] in found.classes["train"]):
            continue
        count = len(loose) + sum(map(len, classes.values()))
        root = found.roots.pop(split)
        del found.classes[split], found.loose[split]
        where = "in no class folder" if loose else f"in {alone[0]}, which is no class of train"
        found.notes.append(
            f"left out: {root}, whose {plural(count, 'image')} lie {where}: {split} is cut from "
            "train instead"
        )


def _check_class_folders(path: Path, found: _Found, results: Sequence[str]) -> tuple[str, ...]:
    fewer = {split: root for split, root in found.roots.items() if split == "train"}
    leave_out = f", or leave a split out, as in {option(fewer)}" if len(found.roots) > 1 else ""
    for split, folder in found.roots.items():
        root = path / folder
        loose = found.loose[split]
        if loose:
            either = leave_out if split != "train" else ""
            raise DataError(
                f"{root} has {plural(len(loose), 'image')} in no class folder (such as "
                f"{PurePosixPath(loose[0]).name}): move each into the folder of its class{either}"
            )
        for entry in _folders(root, below=folder, results=results):
            if entry.name not in found.classes[split]:
                raise DataError(
                    f"{root}: class folder {entry.name!r} has no image{_other_files(entry)}: add "
                    f"images of {entry.name!r} to {split}, or remove that folder from every split"
                )
    names = tuple(sorted(found.classes["train"]))
    if len(names) < 2:
        root = path / found.roots["train"]
        name_depth = len(PurePosixPath(found.roots["train"], "x").parts)
        itself = "; or, for images without labels, set --data.layout unlabelled"
        for name in names:
            if all(image.count("/") == name_depth for image in found.classes["train"][name]):
                itself = (
                    f"; or give the sub-folder itself, {root / name}, for images without labels"
                )
        raise DataError(
            f"{root} has {plural(len(names), 'class folder')} with images; at least 2 are needed, "
            f"one folder a class{itself}{tables_beside(path)}"
        )
    present = {split: set(classes) for split, classes in found.classes.items()}
    check_class_lists(str(path), names, present, otherwise=leave_out)
    return names


def _folders(root: Path, *, below: str, results: Sequence[str]) -> Iterator[Path]:
    """Yield the folders in a folder that may be classes: not those of results alone."""
    root = places.absolute(root)
    prefix = f"{below}/" if below else ""
    ours = {name[len(prefix) :].partition("/")[0] for name in results if name.startswith(prefix)}
    for entry in sorted(root.iterdir()):
        hidden = entry.name.startswith(".") or entry.name.lower() in LEFT_BY_SYSTEMS
        if entry.is_dir() and not hidden and entry.name not in ours and entry != places.runs_dir():
            yield entry


def _other_files(folder: Path, *, advise: bool = False) -> str:
    """Say which other files a folder has: these may be images in a format that is not read."""
    every = {PurePosixPath(file.name).suffix.lower() for file in walk(folder, ("",)).files}
    suffixes = sorted(every - {"", ".db", ".ini"})
    advice = next(filter(None, map(advice_for, suffixes if advise else ())), None)
    how = "" if advice is None else f": {advice}"
    return f" but files that are not read ({some(suffixes)}{how})" if suffixes else ""


def tables_beside(path: Path) -> str:
    """Name a table that lies in a folder, to be given instead."""
    tables = [
        entry
        for entry in sorted(path.iterdir())
        if entry.suffix.lower() in (".csv", ".tsv") and entry.stem != "leaderboard"
    ]
    return f"; or give the table, --data {tables[0]}" if tables else ""
