"""The files of a leaderboard, JSON, Markdown, CSV and HTML, and its table on the terminal."""

import csv
import dataclasses
import io
import json
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from smallvit.core.errors import explained
from smallvit.core.whole_file import write_text
from smallvit.leaderboard.board import Leaderboard
from smallvit.leaderboard.figures import kind_of
from smallvit.leaderboard.report_columns import (
    ATTACKS_NOTE,
    MEAN_PER_CLASS,
    figure_names,
    show_top5,
)
from smallvit.leaderboard.report_page import render_html, render_markdown
from smallvit.leaderboard.report_text import (
    format_commonest,
    format_percent,
    format_time,
    format_value,
    group_name,
    short_count,
    spread_name,
)
from smallvit.leaderboard.rows import ROW_FIELDS, Row

FORMAT_VERSION = 2
TERMINAL_WIDTH = 100

# What the second table of a terminal shows while there is room, under heads that are short; a path
# that ends in a slash stands for all that begin with it.
TERMINAL_FIGURES = {
    "corruption/generated": "corrupt.\ngener.",
    "corruption/official": "corrupt.\nofficial",
    "calibration/ece": "ECE",
    "calibration/ece_scaled": "ECE\nscaled",
    "attack/autoattack/": "AutoAtt.\n{}/255",
    "attack/pgd/": "PGD\n{}/255",
    "ood/auroc/msp/": "AUROC\n{}",
    "features/knn": "k-NN",
    "features/linear": "linear\nprobe",
    "attack/fgsm/": "FGSM\n{}/255",
}


def write_leaderboard(leaderboard: Leaderboard, folder: Path) -> dict[str, Path]:
    """Write leaderboard.json, .md, .csv and .html, each whole or not at all.

    Args:
        leaderboard: What they show.
        folder: Where the files go; made if missing.

    Returns:
        The files by their kind: ``json``, ``md``, ``csv`` and ``html``.

    Raises:
        DataError: If they cannot be written.
    """
    texts = {
        "json": render_json(leaderboard),
        "md": render_markdown(leaderboard),
        "csv": render_csv(leaderboard),
        "html": render_html(leaderboard),
    }
    prepare_folder(folder)
    files = {}
    for kind, text in texts.items():
        files[kind] = folder / f"leaderboard.{kind}"
        write_text(files[kind], text, "choose another --out, or free space")
    return files


def prepare_folder(folder: Path) -> None:
    """Make the folder of a leaderboard and see that it can be written, before hours of work.

    Raises:
        DataError: If it cannot.
    """
    with explained(lambda e: f"cannot write to {folder} ({e.strerror}): choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def render_json(leaderboard: Leaderboard) -> str:
    """Return every figure as JSON; of the evidence, all but the pictures."""
    document = {
        "version": FORMAT_VERSION,
        "title": leaderboard.title,
        "verdict": leaderboard.verdict,
        "warnings": leaderboard.warnings,
        "notes": list(leaderboard.notes),
        "protocol": dict(leaderboard.protocol),
        "rows": [
            row.record()
            | {"figures": {name: dataclasses.asdict(each) for name, each in row.figures.items()}}
            | {"missing": row.missing}
            for row in leaderboard.rows
        ],
        "entries": [entry.record() for entry in leaderboard.entries],
        "comparisons": [
            _plain(each) | {"verdict": each.verdict} for each in leaderboard.comparisons
        ],
        "evidence": {
            f"{row.dataset}, {row.name}": _plain(leaderboard.evidence[row.key])
            for row in leaderboard.rows
            if row.key in leaderboard.evidence
        },
        "references": [_plain(each) for each in leaderboard.references],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def render_csv(leaderboard: Leaderboard) -> str:
    """Return one line a row with every figure; several seeds are separated by spaces.

    A figure has three columns: its path with ``_mean``, ``_std`` and ``_n``.
    """
    rows = leaderboard.rows
    parts = ("mean", "std", "n")
    figures = [f"{name}_{part}" for name in figure_names(rows) for part in parts]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*ROW_FIELDS, *figures], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        line = row.record()
        line["seeds"] = " ".join(map(str, row.seeds))
        for name, figure in row.figures.items():
            line |= {f"{name}_{part}": getattr(figure, part) for part in parts}
        writer.writerow(line)
    return file.getvalue()


def render_table(leaderboard: Leaderboard) -> Group:
    """Return the leaderboard for a terminal of 100 columns, the best row of a dataset bold.

    Where more was measured than accuracy and calibration, a second table shows as much as fits.
    """
    rows = leaderboard.rows
    main = _terminal_table(rows, _main_columns(rows), yardstick=True)
    if not _fits(main):
        main.padding = 0
    names = figure_names(rows)
    if all(kind_of(name).group in ("Accuracy", "Calibration", "Cost") for name in names):
        return Group(main)
    columns = _robust_columns(rows, names)
    robust = _terminal_table(rows, columns)
    while not _fits(robust) and len(columns) > 1:
        columns.pop()
        robust = _terminal_table(rows, columns)
    caption = "mean over seeds, in percent; the files have all figures"
    if any(name.startswith("attack/") for name in names):
        caption = f"{caption}; {ATTACKS_NOTE}"
    return Group(main, "", robust, Text(caption, style="dim"))


def _fits(table: Table) -> bool:
    wide = Console(width=10 * TERMINAL_WIDTH)
    return Measurement.get(wide, wide.options, table).maximum <= TERMINAL_WIDTH


def _main_columns(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    columns = [
        ("top-1\n%", [format_percent(row.top1_mean) for row in rows]),
        ("\n".join(spread_name(rows).rsplit(" ", 1)), [_terminal_spread(row) for row in rows]),
    ]
    if show_top5(rows):
        columns.append(("top-5\n%", [format_percent(row.mean("top5")) for row in rows]))
    if any(row.uneven for row in rows):
        columns.append(("mean per\nclass %", _figure_cells(rows, MEAN_PER_CLASS)))
    others = [row.mean("pretrain_samples") + row.mean("teacher_samples") for row in rows]
    return [
        *columns,
        ("n\ntest", [f"{row.n_test:,}" for row in rows]),
        ("seeds", [str(row.num_seeds) for row in rows]),
        ("labels", [f"{row.num_labels:,}" for row in rows]),
        ("samples\nseen", [short_count(row.mean("samples_seen")) for row in rows]),
        ("+ pretrain,\nteacher", [short_count(count) for count in others]),
        ("time\nstage 2", [format_time(row.mean("wall_s")) for row in rows]),
        ("time\nin total", [format_time(row.mean("total_wall_s")) for row in rows]),
    ]


def _robust_columns(rows: Sequence[Row], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    return [
        (head.format(name.removeprefix(key)), _figure_cells(rows, name))
        for key, head in TERMINAL_FIGURES.items()
        for name in names
        if name == key or (key.endswith("/") and name.startswith(key))
    ]


def _figure_cells(rows: Sequence[Row], name: str) -> list[str]:
    """Write a figure of each row, or nothing where a row lacks it."""
    figures = [row.figures.get(name) for row in rows]
    return [format_value(each.mean, kind_of(name).unit) if each else "" for each in figures]


def _terminal_table(
    rows: Sequence[Row], columns: Sequence[tuple[str, list[str]]], *, yardstick: bool = False
) -> Table:
    """Return a table of rows in groups.

    Args:
        rows: The rows.
        columns: Head and cells of each column.
        yardstick: Whether the first column is top-1, below which naming one class always stands.
    """
    groups = [list(group) for _, group in groupby(enumerate(rows), key=lambda i: group_name(i[1]))]
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=Text(group_name(rows[0])) if len(groups) == 1 else None,
        title_justify="left",
    )
    table.add_column("arm", overflow="fold", min_width=12, max_width=14)
    for head, _ in columns:
        table.add_column(Text(head), justify="right", vertical="bottom")
    for group in groups:
        if len(groups) > 1:
            table.add_section()
            table.add_row(Text(group_name(group[0][1]).replace(", ", "\n"), style="italic"))
        for index, row in group:
            cells = [cells[index] for _, cells in columns]
            table.add_row(Text(row.arm), *cells, style="bold" if row.best else None)
        if yardstick and (share := format_commonest(group[0][1])):
            table.add_row(Text("one class"), share, style="dim")
    return table


def _terminal_spread(row: Row) -> str:
    if row.interval is not None:
        return "-".join(f"{100 * end:.1f}" for end in row.interval)
    return "" if row.top1_std is None else f"+- {100 * row.top1_std:.2f}"


def _plain(item: Any) -> dict[str, Any]:
    """Return its fields without the picture, which JSON cannot hold."""
    plain = dataclasses.asdict(item)
    plain.pop("attention", None)
    return plain
