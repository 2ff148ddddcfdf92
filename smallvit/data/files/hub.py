"""Datasets of the Hugging Face Hub: the parquet files of one commit, read like one's own.

``huggingface_hub`` downloads them; it is imported only where something is to be fetched. The
environment variable ``HF_ENDPOINT`` names another server than https://huggingface.co.
"""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock

from smallvit.core.errors import ConfigError, DataError, explained, reason
from smallvit.data.files.layout import parse_layout, refuse_classes
from smallvit.data.files.parquet import list_parquet, parquet_splits
from smallvit.data.files.registry import DATASETS
from smallvit.data.files.sources import Columns, Source, find_files, source_key
from smallvit.data.files.walk import mark_folder

SYNTAX = "hf:OWNER/NAME@COMMIT, or hf:OWNER/NAME@COMMIT#CONFIG"
_REFERENCE = re.compile(
    r"(?:hf:)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^@#\s]+))?(?:#(?P<config>[\w.-]+))?",
    re.ASCII,
)
LIST_TIMEOUT_S = 30.0
HINT_TIMEOUT_S = 5.0  # a look-up that only makes a message better


@dataclass(frozen=True, kw_only=True)
class HubReference:
    """A fixed state of a dataset on the Hub.

    Attributes:
        repo: ``owner/name``.
        revision: Full commit.
        config: Top-level folder whose parquet files are meant; ``None`` where there is only one.
    """

    repo: str
    revision: str
    config: str | None = None

    def __str__(self) -> str:
        config = "" if self.config is None else f"#{self.config}"
        return f"hf:{self.repo}@{self.revision}{config}"


def parse_reference(text: str, *, offline: bool = False) -> HubReference:
    """Read ``hf:owner/name@commit`` or ``hf:owner/name@commit#config``; ``hf:`` may be absent.

    A branch or tag is refused, since what it names can change: the message gives its present
    commit, if the Hub answers.

    Args:
        text: The reference.
        offline: Do not ask the Hub.

    Raises:
        ConfigError: If it is not of this form.
    """
    match = _REFERENCE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} does not name a dataset of the Hugging Face Hub: {SYNTAX}")
    repo, revision, config = match["repo"], match["revision"], match["config"]
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return HubReference(repo=repo, revision=revision, config=config)
    wanted = revision or "main"
    commit = None if offline else _commit_of(repo, wanted)
    given = "names no commit" if revision is None else f"names {revision!r}, not a full commit"
    if commit is None:
        remedy = f"take one of 40 hexadecimal digits from {_page(repo)}/commits/{wanted}"
    else:
        whole = HubReference(repo=repo, revision=commit, config=config)
        remedy = f"{wanted} is {whole} at present"
    raise ConfigError(f"{text} {given}, so its images could change: {remedy}")


def fetch_hub(reference: str, folder: Path, *, offline: bool) -> None:
    """Download the parquet files of a dataset.

    They go to a hidden folder beside ``folder`` that is renamed when whole; a download that was cut
    off is continued. Their lengths are checked against the Hub's.

    Args:
        reference: ``hf:owner/name@commit``, with ``#config`` where there are several.
        folder: Where the files are put, below their paths in the repository.
        offline: Refuse to download.

    Raises:
        ConfigError: If the reference is malformed, or lacks the config or names an unknown one.
        DataError: If the files cannot be had; the message says how to put them there by hand.
    """
    parsed = parse_reference(reference, offline=offline)
    if offline:
        raise DataError(_unreachable(parsed, folder, "offline"))
    from huggingface_hub import HfApi

    partial = folder.with_name(f".{folder.name}.part")
    # Every release raises the errors of its own HTTP library.
    with explained(
        lambda e: _unreachable(parsed, folder, f"{type(e).__name__}: {reason(e)[:200]}"), Exception
    ):
        # Not list_repo_files, which tries for 23 s where there is no network.
        api = HfApi(endpoint=_endpoint())
        info = api.dataset_info(parsed.repo, revision=parsed.revision, timeout=LIST_TIMEOUT_S)
        tables = choose_config(
            parsed, _parquet_names(parsed, [file.rfilename for file in info.siblings or ()])
        )
        partial.mkdir(parents=True, exist_ok=True)
        for name in tables:
            api.hf_hub_download(
                parsed.repo,
                name,
                repo_type="dataset",
                revision=parsed.revision,
                local_dir=partial,
            )
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # notes for a continued download
        partial.rename(folder)


def open_hub(
    reference: str,
    *,
    data_dir: Path,
    offline: bool,
    image_column: str | None = None,
    label_column: str | None = None,
    layout: str | None = None,
) -> Source:
    """Open a dataset of the Hub, downloading it first where it is absent.

    Args:
        reference: ``hf:owner/name@commit``, with ``#config`` where there are several.
        data_dir: Folder for all datasets; this one lies in ``hub/<owner>--<name>/<commit>``, with
            ``-<config>`` behind where there is one.
        offline: Refuse to download.
        image_column: As in ``parquet.list_parquet``.
        label_column: As in ``parquet.list_parquet``.
        layout: As in ``own.open_path``.

    Raises:
        ConfigError: If the reference is malformed or the config is missing or unknown.
        DataError: If the files are absent and cannot be had.
    """
    parsed = parse_reference(reference, offline=offline)
    leaf = parsed.revision if parsed.config is None else f"{parsed.revision}-{parsed.config}"
    folder = data_dir / "hub" / parsed.repo.replace("/", "--") / leaf
    with explained(
        lambda error: (
            f"cannot use the data folder {data_dir} ({error.strerror}): set "
            "SMALLVIT_DATA_DIR to a folder with room"
        )
    ):
        if not folder.is_dir() and offline:
            raise DataError(
                f"{parsed} is not in {data_dir}: `smallvit data get {parsed}` fetches it; by hand: "
                f"{_by_hand(parsed, folder)}"
            )
        if not folder.is_dir():
            folder.parent.parent.mkdir(parents=True, exist_ok=True)
            mark_folder(folder.parent.parent)  # it may lie below a folder of the user's images
            folder.parent.mkdir(exist_ok=True)
            with FileLock(folder.with_name(f".{leaf}.lock")):
                if not folder.is_dir():  # another process may have fetched it meanwhile
                    fetch_hub(reference, folder, offline=offline)
        root = folder / (parsed.config or "")
        root = root if root.is_dir() else folder
        found = find_files(root, (".parquet",))
    if not found:
        raise DataError(_unreachable(parsed, folder, f"{folder} holds no parquet file"))
    if parsed.config is None:
        choose_config(parsed, [file.name for file in found])
    named = parse_layout(layout)
    refuse_classes(named, f"{parsed} holds parquet files")
    splits = parquet_splits(root, found, named)
    facts = [(file.name, file.size) for file in found]  # a commit does not change; times may
    parts = (str(parsed), facts, image_column, label_column)
    name = parsed.repo.partition("/")[2].lower()
    known = DATASETS.get(name)  # a copy of a known dataset: digits are not mirrored here either
    return Source(
        name=name,
        key=source_key(*parts, *([] if named is None else [named])),
        hflip=known is None or known.hflip,
        autoaugment="imagenet" if known is None else known.autoaugment,
        image_size=None,
        list_images=lambda: list_parquet(splits, Columns(image_column, label_column), named),
        kind="parquet of the Hub",
    )


def choose_config(reference: HubReference, names: Iterable[str]) -> list[str]:
    """Return the parquet files of the config that a reference names, or of the only one.

    A config is a top-level folder. Files at the top, in ``data`` or in folders that begin with
    train, val or test form one together, called ``data``.

    Args:
        reference: What is asked for.
        names: Parquet files, by their paths in the repository.

    Raises:
        ConfigError: If there are several and none is named, or the named one is not there.
    """
    configs: dict[str, list[str]] = {}
    for name in names:
        top, slash, _ = name.partition("/")
        config = top if slash and not top.lower().startswith(("train", "val", "test")) else "data"
        configs.setdefault(config, []).append(name)
    known = ", ".join(sorted(configs))
    if reference.config is None:
        if len(configs) > 1:
            first = replace(reference, config=min(configs))
            raise ConfigError(f"{reference} has several configs ({known}): name one, as in {first}")
        return next(iter(configs.values()))
    if reference.config not in configs:
        raise ConfigError(f"{reference}: no config {reference.config!r}; known: {known}")
    return configs[reference.config]


def _parquet_names(reference: HubReference, names: Iterable[str]) -> list[str]:
    names = sorted(names)
    tables = [name for name in names if name.lower().endswith(".parquet")]
    if tables:
        return tables
    scripts = [name for name in names if "/" not in name and name.endswith(".py")]
    why = (
        f"it relies on the loading script {scripts[0]}, which is not run"
        if scripts
        else (f"it has {len(names)} files of other kinds")
    )
    commit = _commit_of(reference.repo, "refs/convert/parquet")
    if commit is None:
        remedy = (
            f"look for a parquet branch at {_page(reference.repo)}/tree/refs%2Fconvert%2Fparquet"
        )
    else:
        remedy = f"take the Hub's converted copy, {replace(reference, revision=commit)}"
    raise DataError(f"{reference} has no parquet file ({why}): {remedy}")


def _commit_of(repo: str, revision: str) -> str | None:
    """Ask which commit a branch or tag is at; ``None`` where the Hub does not say."""
    with suppress(Exception):  # an answer would make a message better; none is no failure
        from huggingface_hub import HfApi

        api = HfApi(endpoint=_endpoint())
        return api.dataset_info(repo, revision=revision, timeout=HINT_TIMEOUT_S).sha
    return None


def _unreachable(reference: HubReference, folder: Path, why: str) -> str:
    return f"{reference} could not be fetched ({why}): {_by_hand(reference, folder)}"


def _by_hand(reference: HubReference, folder: Path) -> str:
    below = "" if reference.config is None else f"/{reference.config}"
    return (
        f"download the parquet files of {_page(reference.repo)}/tree/{reference.revision}{below} "
        f"and put them, with the folders they lie in, into {folder}"
    )


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _page(repo: str) -> str:
    return f"{_endpoint()}/datasets/{repo}"
