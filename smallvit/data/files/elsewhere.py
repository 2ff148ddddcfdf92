"""Data in the files of other tools: which are not read, and how each becomes what is."""

import shlex
import tomllib
from pathlib import Path, PurePath

_TABLE = tomllib.loads(Path(__file__).with_name("elsewhere.toml").read_text("utf-8"))
_BY_SUFFIX = {suffix: row["text"] for row in _TABLE["advice"] for suffix in row["suffixes"]}


def advice_for(path: str | PurePath) -> str | None:
    """Say what makes a file of another tool readable; ``None`` where nothing is known of it.

    Args:
        path: The file, or a suffix alone.
    """
    name = str(path).lower()
    suffix = name[name.rfind(".") :] if "." in name else ""
    if name.endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
        suffix = ".tar"
    if "tfrecord" in name.rpartition("/")[2]:  # train.tfrecord-00001-of-00010
        suffix = ".tfrecord"
    advice = _BY_SUFFIX.get(suffix)
    if advice is None or name == suffix or "/CLASS/" in advice:
        return advice
    folder = str(path)[: name.rfind(suffix)]
    return advice.replace("FILE", shlex.quote(str(path))).replace("FOLDER", shlex.quote(folder))
