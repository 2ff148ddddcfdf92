import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from rich.console import Console

from smallvit.bench.leaderboard import Entry, Row, build_rows
from smallvit.bench.report import (
    FULL_AXIS,
    Axis,
    format_time,
    render_html,
    render_markdown,
    render_table,
    write_leaderboard,
)

VOID = {"meta", "br", "line", "rect", "circle"}
HOSTILE = "<script>alert(1)</script>|x"


class Page(HTMLParser):
    """Collect the text of a page, its tags and the addresses it refers to."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def __contains__(self, text):
        return text in " ".join(" ".join(self.text).split())


def html_of(entries, notes=(), title="A title"):
    return render_html(build_rows(entries), entries, title=title, notes=list(notes))


def markdown_of(entries, notes=(), title="A title"):
    return render_markdown(build_rows(entries), entries, title=title, notes=list(notes))


def terminal_of(entries, width=100):
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    console.print(render_table(build_rows(entries)))
    text = console.file.getvalue()
    return re.sub(r"\x1b\[[0-9;]*m", "", text), text


def test_writes_four_files_and_leaves_no_other(four_arms, tmp_path):
    rows = build_rows(four_arms)
    files = write_leaderboard(rows, four_arms, tmp_path / "new", title="A title", notes=[])
    assert {kind: path.name for kind, path in files.items()} == {
        kind: f"leaderboard.{kind}" for kind in ("json", "md", "csv", "html")
    }
    assert sorted(files.values()) == sorted((tmp_path / "new").iterdir())


def test_a_failure_leaves_the_previous_files_whole(four_arms, tmp_path, monkeypatch):
    rows = build_rows(four_arms)
    files = write_leaderboard(rows, four_arms, tmp_path, title="first", notes=[])
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: pytest.fail("no rename"))
    with pytest.raises(pytest.fail.Exception, match="no rename"):
        write_leaderboard(rows, four_arms, tmp_path, title="second", notes=[])
    assert json.loads(files["json"].read_text())["title"] == "first"


def test_json_round_trips(four_arms, entry, tmp_path):
    entries = [*four_arms, entry(seed=1)]
    rows = build_rows(entries)
    files = write_leaderboard(rows, entries, tmp_path, title="A title", notes=["a note"])
    document = json.loads(files["json"].read_text())
    assert document["version"] == 1
    assert document["notes"] == ["a note"]
    assert [Entry(**plain) for plain in document["entries"]] == entries
    assert [Row(**(p | {"seeds": tuple(p["seeds"])})) for p in document["rows"]] == rows


def test_csv_has_one_line_a_row_and_every_figure(four_arms, entry, tmp_path):
    entries = [*four_arms, entry(seed=1)]
    rows = build_rows(entries)
    files = write_leaderboard(rows, entries, tmp_path, title="A title", notes=[])
    lines = list(csv.DictReader(files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [float(line["top1_mean"]) for line in lines] == [row.top1_mean for row in rows]
    assert lines[0]["seeds"] == "0 1"
    assert lines[1]["top1_std"] == ""
    assert set(lines[0]) == set(vars(rows[0]))


def test_markdown_table_has_equal_cells_in_every_line(four_arms):
    table = [line for line in markdown_of(four_arms).splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert "**94.00**" in table[-1]


def test_markdown_escapes_names(entry):
    text = markdown_of([entry(model=HOSTILE, run=HOSTILE)], notes=[HOSTILE], title=HOSTILE)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|x" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_html_parses_and_loads_nothing(four_arms):
    html = html_of(four_arms, notes=["a note"])
    page = Page(html)
    assert page.addresses == []
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_html_shows_figures_warnings_notes_and_runs(four_arms, entry):
    page = Page(html_of([*four_arms, entry("both", seed=1, dirty=True)], notes=["a note"]))
    for text in (
        "a note",
        "1 of 5 runs used code with uncommitted changes",
        "90.00",
        "82.56 to 94.48",
        "30 passes over 1,000 labelled images",
        "4 min 05 s",
        "0123456789abcdef",
        "runs/digits/SSL start-s0",
        "215,434 parameters",
    ):
        assert text in page, text


def test_html_escapes_names(entry):
    runs = [
        entry(dataset=HOSTILE, model=HOSTILE, run=HOSTILE, machine=HOSTILE, commit=HOSTILE),
        entry("both", dataset=HOSTILE, extra_data=HOSTILE, fingerprint=HOSTILE),
    ]
    html = html_of(runs, notes=[HOSTILE], title=HOSTILE)
    assert html.count("<script>") == 1  # the page's own
    assert Page(html).tags.count("script") == 1
    assert HOSTILE in Page(html)


def test_html_has_a_bar_and_a_dot_for_each_row(four_arms):
    html = html_of(four_arms)
    assert re.findall(r'<rect class="bar (\w*)"[^>]* width="([\d.]+)%"', html) == [
        ("", "90.0"),
        ("", "92.0"),
        ("", "93.0"),
        ("best", "94.0"),
    ]
    assert html.count("<circle") == 4


def test_html_has_as_many_heads_as_cells(four_arms, entry):
    for entries in (
        four_arms,
        [*four_arms, entry("both", model="vit_tiny", params=7, extra_data="a CNN")],
        [*four_arms, entry("both", model="vit_tiny", extra_data="a CNN")],
        [entry(top5=1.0)],
    ):
        table = html_of(entries).split("<table", 1)[1].split("</table>")[0]
        bands, heads, *rows = table.split("<tr")[1:]
        counts = {len(re.findall(r"<t[hd]\b", row)) for row in (heads, *rows)}
        spans = sum(int(span) for span in re.findall(r'colspan="(\d+)"', bands))
        assert counts == {spans + 1}


def test_top5_is_left_out_where_it_says_nothing(entry, four_arms):
    assert "top-5" in html_of(four_arms)
    assert "top-5" not in html_of([entry(top5=1.0)])
    assert "top-5" not in terminal_of([entry(top5=1.0)])[0]


def test_no_runs_give_a_page_with_the_notes(tmp_path):
    files = write_leaderboard([], [], tmp_path, title="A title", notes=["cell 1 failed"])
    page = Page(files["html"].read_text(encoding="utf-8"))
    assert "No run was scored." in page
    assert "cell 1 failed" in page
    assert len(files["csv"].read_text().splitlines()) == 1


@pytest.mark.parametrize("correct", [0, 3, 50, 99, 100])
def test_the_magnified_axis_holds_every_error_bar(entry, correct):
    runs = [entry(correct=correct), entry("both", correct=min(correct + 1, 100))]
    shown = re.findall(r"magnified: ([\d.]+) to ([\d.]+) %", html_of(runs))
    low, high = map(float, shown[0])
    ends = [100 * end for row in build_rows(runs) for end in (row.top1_low, row.top1_high)]
    assert 0 <= low <= min(ends) + 1e-6
    assert max(ends) - 1e-6 <= high <= 100


def test_the_magnified_axis_has_a_width_without_any_spread(entry):
    runs = [entry(correct=100, seed=seed) for seed in range(2)]
    assert "magnified: 99.9 to 100 %" in html_of(runs)


def test_axis_places_values_in_percent_of_its_width():
    axis = Axis(low=0.9, high=1.0, step=0.05)
    assert [axis.place(value) for value in (0.9, 0.95, 1.0)] == pytest.approx([0, 50, 100])
    assert axis.ticks == pytest.approx([0.9, 0.95, 1.0])
    assert axis.place(0.5) == 0
    assert FULL_AXIS.ticks == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0, "0.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 00 s"),
        (245.0, "4 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
    ],
)
def test_times_are_written_as_a_person_reads_them(time_s, text):
    assert format_time(time_s) == text


def test_table_shows_the_best_row_bold(four_arms):
    plain, styled = terminal_of(four_arms)
    assert [line.split()[0] for line in plain.splitlines()[-4:]] == [
        "scratch",
        "SSL",
        "token",
        "both",
    ]
    assert "\x1b[1m" in styled.splitlines()[-1]
    assert "\x1b[1m" not in styled.splitlines()[-2]
    assert "82.6-94.5" in plain


def test_table_shows_the_std_over_seeds(entry):
    plain, _ = terminal_of([entry(correct=90), entry(correct=94, seed=1)])
    assert "92.00 +- 2.83" in " ".join(plain.split())
    assert "std" in plain


def test_table_fits_in_100_columns(entry):
    big = {
        "n_test": 10_000,
        "num_labels": 50_000,
        "samples_seen": 15_000_000,
        "wall_s": 3_500.0,
        "total_wall_s": 180_000.0,
    }
    runs = [entry("token labels", correct=9_000 + seed, seed=seed, **big) for seed in range(3)]
    plain, _ = terminal_of([*runs, entry(dataset="a-data-set-with-a-long-name")], width=200)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 100
    assert "50 h 00 min" in plain
    assert "\u2026" not in plain


def test_table_takes_names_literally(entry):
    plain, _ = terminal_of([entry(model="[red]x[/red]")])
    assert "[red]x[/red]" in plain


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page(four_arms, tmp_path, width):
    files = write_leaderboard(
        build_rows(four_arms), four_arms, tmp_path, title="A title", notes=["a note"]
    )
    # A headless window is at least 500 wide; a frame can be narrower.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body style="margin:0"><iframe src="{files["html"].name}" '
        f'style="border:0;width:{width}px;height:1500px"></iframe>'
    )
    shot = tmp_path / "shot.png"
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        "--disable-background-networking --disable-component-update --disable-sync"
    )
    subprocess.run(
        [
            *("chromium", *options.split(), f"--user-data-dir={tmp_path / 'profile'}"),
            *(f"--window-size={max(width, 500)},1500", f"--screenshot={shot}", frame.as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert shot.stat().st_size > 20_000  # a blank page compresses to far less
