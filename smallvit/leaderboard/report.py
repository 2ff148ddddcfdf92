"""The files of a leaderboard, JSON, Markdown, CSV and HTML, and its table on the terminal."""

import csv
import dataclasses
import io
import json
import re
import tempfile
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from smallvit.core.errors import DataError
from smallvit.core.whole_file import replacing
from smallvit.leaderboard.board import Leaderboard
from smallvit.leaderboard.figures import kind_of
from smallvit.leaderboard.published import Reference, published_name
from smallvit.leaderboard.report_columns import (
    ATTACKS_NOTE,
    COMMONEST_HEAD,
    MEAN_PER_CLASS,
    figure_names,
    show_top5,
    table_bands,
)
from smallvit.leaderboard.report_page import render_html
from smallvit.leaderboard.report_text import (
    format_commit,
    format_commonest,
    format_count,
    format_difference,
    format_labels,
    format_p,
    format_percent,
    format_spread,
    format_time,
    format_value,
    group_name,
    row_labels,
    short_count,
    spread_name,
)
from smallvit.leaderboard.rows import ROW_FIELDS, Row

FORMAT_VERSION = 2
TERMINAL_WIDTH = 100

MARKDOWN_COLUMNS = (
    *("dataset", "model", "arm", "top-1 %", "std or 95 % interval", "commonest class %"),
    *("top-5 %", "n test", "seeds"),
    *("labels", "samples seen", "pretrain samples", "teacher samples", "stage 2", "in total"),
    *("images/s", "parameters", "extra data", "commit"),
)
BOLD = "The highest top-1 of each dataset is bold, of rows whose accuracy can be gone by."
COMMONEST = (
    "Commonest class: what naming the most frequent class of the test images always would score."
)
# Bands of the page whose columns the first table of the Markdown has.
MAIN_BANDS = ("Seeds and images", "Training", "Data")
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
        with replacing(files[kind], "choose another --out, or free space") as file:
            file.write(text.encode())
    return files


def prepare_folder(folder: Path) -> None:
    """Make the folder of a leaderboard and see that it can be written, before hours of work.

    Raises:
        DataError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"cannot write to {folder} ({error.strerror}): choose another --out"
        ) from error


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


def render_summary(leaderboard: Leaderboard, page: Path) -> str:
    """Return a table of the accuracies and the verdict as a piece of HTML, for a notebook."""
    heads = ("dataset", "model", "arm", "top-1 %", "", "commonest class %", "seeds", "in total")
    lines = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for row in leaderboard.rows:
        cells = (
            *(row.dataset, row.model, row.arm, format_percent(row.top1_mean), format_spread(row)),
            *(format_commonest(row), str(row.num_seeds), format_time(row.mean("total_wall_s"))),
        )
        weight = ' style="font-weight: bold"' if row.best else ""
        lines.append(f"<tr{weight}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    below = [*leaderboard.verdict, *leaderboard.warnings, f"page: {page}"]
    return f"<table>{''.join(lines)}</table>" + "".join(f"<p>{escape(text)}</p>" for text in below)


def render_markdown(leaderboard: Leaderboard) -> str:
    """Return a page of tables, as GitHub shows it."""
    rows, entries = leaderboard.rows, leaderboard.entries
    lines = [f"# {_markdown(leaderboard.title)}", ""]
    lines += [f"- {_markdown(sentence)}" for sentence in leaderboard.verdict]
    lines += [
        "",
        _markdown_row(MARKDOWN_COLUMNS),
        _markdown_row(["---"] * 3 + ["---:"] * 14 + ["---"] * 2),
    ]
    for row in rows:
        cells = [
            *(row.dataset, row.model, row.arm, format_percent(row.top1_mean), format_spread(row)),
            *(format_commonest(row), format_percent(row.mean("top5")), f"{row.n_test:,}"),
            str(row.num_seeds),
            *(
                format_labels(row),
                format_count(row.mean("samples_seen")),
                format_count(row.mean("pretrain_samples")),
            ),
            *(format_count(row.mean("teacher_samples")), format_time(row.mean("wall_s"))),
            *(
                format_time(row.mean("total_wall_s")),
                format_count(row.mean("images_per_s")),
                f"{row.params:,}",
            ),
            *(row.extra_data, format_commit(row.commit)),
        ]
        shown = [_markdown(cell) for cell in cells]
        lines.append(
            _markdown_row([f"**{cell}**" if row.best else cell for cell in shown[:4]] + shown[4:])
        )
    lines += ["", BOLD, "", COMMONEST]
    for dataset, group in groupby(rows, key=lambda row: row.dataset):
        lines += _markdown_dataset(dataset, list(group), leaderboard)
    sections = {
        "How it was measured": [f"{name}: {text}" for name, text in leaderboard.protocol.items()],
        "Warnings": leaderboard.warnings,
        "Notes": leaderboard.notes,
    }
    for heading, items in sections.items():
        if items:
            lines += ["", f"## {heading}", "", *(f"- {_markdown(item)}" for item in items)]
    lines += ["", "## Runs", ""]
    for entry in entries:
        run = f"{entry.shown_dataset}, {entry.shown_arm}, seed {entry.seed}: {entry.run}"
        lines.append(f"- {_markdown(run)}")
    return "\n".join(lines) + "\n"


def render_table(leaderboard: Leaderboard) -> Group:
    """Return the leaderboard for a terminal of 100 columns, the best row of a dataset bold.

    Where more was measured than accuracy and calibration, a second table shows as much as fits.
    """
    rows = leaderboard.rows
    main = _terminal_table(rows, _main_columns(rows), yardstick=True)
    wide = Console(width=10 * TERMINAL_WIDTH)
    if Measurement.get(wide, wide.options, main).maximum > TERMINAL_WIDTH:
        main.padding = 0
    names = figure_names(rows)
    if all(kind_of(name).group in ("Accuracy", "Calibration", "Cost") for name in names):
        return Group(main)
    columns = _robust_columns(rows)
    tables = (_terminal_table(rows, columns[:count]) for count in range(len(columns), 0, -1))
    fitting = (
        table
        for table in tables
        if Measurement.get(wide, wide.options, table).maximum <= TERMINAL_WIDTH
    )
    robust = next(fitting, _terminal_table(rows, columns[:1]))
    caption = "mean over seeds, in percent; the files have all figures"
    if any(name.startswith("attack/") for name in names):
        caption = f"{caption}; {ATTACKS_NOTE}"
    return Group(main, "", robust, Text(caption, style="dim"))


def _main_columns(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    columns = [
        ("top-1\n%", [format_percent(row.top1_mean) for row in rows]),
        ("\n".join(spread_name(rows).rsplit(" ", 1)), [_terminal_spread(row) for row in rows]),
        ("n\ntest", [f"{row.n_test:,}" for row in rows]),
        ("seeds", [str(row.num_seeds) for row in rows]),
        ("labels", [f"{row.num_labels:,}" for row in rows]),
        ("samples\nseen", [short_count(row.mean("samples_seen")) for row in rows]),
        (
            "+ pretrain,\nteacher",
            [
                short_count(row.mean("pretrain_samples") + row.mean("teacher_samples"))
                for row in rows
            ],
        ),
        ("time\nstage 2", [format_time(row.mean("wall_s")) for row in rows]),
        ("time\nin total", [format_time(row.mean("total_wall_s")) for row in rows]),
    ]
    if any(row.uneven for row in rows):
        cells = [
            format_percent(row.figures[MEAN_PER_CLASS].mean)
            if MEAN_PER_CLASS in row.figures
            else ""
            for row in rows
        ]
        columns.insert(2, ("mean per\nclass %", cells))
    if show_top5(rows):
        columns.insert(2, ("top-5\n%", [format_percent(row.mean("top5")) for row in rows]))
    return columns


def _robust_columns(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    columns = []
    names = figure_names(rows)
    for key, head in TERMINAL_FIGURES.items():
        for name in names:
            if name == key or (key.endswith("/") and name.startswith(key)):
                unit = kind_of(name).unit
                cells = [
                    format_value(row.figures[name].mean, unit) if name in row.figures else ""
                    for row in rows
                ]
                columns.append((head.format(name.removeprefix(key)), cells))
    return columns


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
        for place, row in group:
            cells = [cells[place] for _, cells in columns]
            table.add_row(Text(row.arm), *cells, style="bold" if row.best else None)
        if yardstick and (share := format_commonest(group[0][1])):
            table.add_row(Text("one class"), share, style="dim")
    return table


def _markdown_dataset(dataset: str, rows: Sequence[Row], leaderboard: Leaderboard) -> list[str]:
    """Return what there is of a dataset beyond the first table."""
    labels = row_labels(rows)
    lines = []
    known = {"top-1, %", "top-5, %", "parameters", COMMONEST_HEAD, spread_name(rows)}
    for band in table_bands(rows):
        columns = [column for column in band.columns if column.head not in known]
        if not columns or band.name in MAIN_BANDS:
            continue
        note = f" ({band.note})" if band.note else ""
        table = [
            [label, *(f"{cell.text} {cell.spread}".strip() for cell in cells)]
            for label, *cells in zip(labels, *(column.cells for column in columns), strict=True)
        ]
        lines += _markdown_table(
            f"{dataset}, {band.name}{note}", ["arm", *(c.head for c in columns)], table
        )
    comparisons = [each for each in leaderboard.comparisons if each.dataset == dataset]
    if comparisons:
        heads = ["row", "against", "points", "95 % interval", "p, adjusted", "test", "verdict"]
        table = [
            [
                *(each.first, each.second, format_difference(each.difference)),
                f"{format_difference(each.low)} to {format_difference(each.high)}",
                *(format_p(each.p_adjusted), each.test, each.verdict),
            ]
            for each in comparisons
        ]
        lines += _markdown_table(f"{dataset}, paired comparisons", heads, table)
    own = next(e.dataset for e in leaderboard.entries if e.shown_dataset == dataset)
    name = published_name(own)
    references = [each for each in leaderboard.references if each.dataset == name]
    if references:
        sentence = None if name == own else f"Measured on {name}: {own} has other images."
        lines += _markdown_references(dataset, references, sentence)
    return lines


def _markdown_references(
    dataset: str, references: Sequence[Reference], sentence: str | None
) -> list[str]:
    heads = ["published", "model", "figure", "value, %", "parameters, M"]
    heads += ["budget and choice", "source"]
    table = [
        [
            *(f"{each.study}, {each.method}", each.model, each.metric, f"{each.value:.2f}"),
            *("" if each.params_m is None else f"{each.params_m:g}", each.budget, each.source),
        ]
        for each in references
    ]
    lines = _markdown_table(f"{dataset}, published figures, not measured here", heads, table)
    if sentence:
        lines[2:2] = ["", _markdown(sentence)]
    return lines


def _markdown_table(
    heading: str, heads: Sequence[str], table: Sequence[Sequence[str]]
) -> list[str]:
    return [
        "",
        f"## {_markdown(heading)}",
        "",
        _markdown_row([_markdown(head) for head in heads]),
        _markdown_row(
            ["---:" if _is_numeric(cells) else "---" for cells in zip(*table, strict=True)]
        ),
        *(_markdown_row([_markdown(cell) for cell in cells]) for cells in table),
    ]


def _is_numeric(cells: Sequence[str]) -> bool:
    return all(cell[:1] in "+-<0123456789" for cell in cells)


def _terminal_spread(row: Row) -> str:
    if row.interval is not None:
        return "-".join(f"{100 * end:.1f}" for end in row.interval)
    return "" if row.top1_std is None else f"+- {100 * row.top1_std:.2f}"


def _plain(item: Any) -> dict[str, Any]:
    """Return its fields without the picture, which JSON cannot hold."""
    plain = dataclasses.asdict(item)
    plain.pop("attention", None)
    return plain


def _markdown(text: str) -> str:
    """Escape what Markdown or HTML would read as markup; a line break would end a table."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(escaped.split()))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
