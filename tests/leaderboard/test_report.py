import csv
import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from smallvit.evaluate.yardstick import measure_yardstick
from smallvit.leaderboard.board import Bin, Evidence, Leaderboard
from smallvit.leaderboard.comparison import Comparison
from smallvit.leaderboard.published import published_references
from smallvit.leaderboard.report import render_json, render_table, write_leaderboard
from smallvit.leaderboard.report_page import render_markdown
from smallvit.leaderboard.rows import Entry, Figure, build_rows

HOSTILE = "<script>alert(1)</script>|x"
FIGURES = {
    "calibration/ece": 0.0512,
    "corruption/generated": 0.71,
    "corruption/official": 0.69,
    "attack/pgd/8": 0.01,
    "attack/pgd/1": 0.41,
    "cost/macs": 2_500_000.0,
}


def board(entries, title="A title", **parts):
    return Leaderboard(title=title, rows=build_rows(entries), entries=entries, **parts)


def terminal_of(entries, width=100):
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    console.print(render_table(board(entries)))
    text = console.file.getvalue()
    return re.sub(r"\x1b\[[0-9;]*m", "", text), text


def comparison(**changes):
    values = {
        "dataset": "digits",
        "first": "both, vit_nano",
        "second": "scratch, vit_nano",
        "difference": 0.04,
        "low": 0.01,
        "high": 0.07,
        "p_value": 0.004,
        "p_adjusted": 0.012,
        "test": "McNemar",
        "num_seeds": 1,
        "n_test": 100,
    }
    return Comparison(**(values | changes))


def test_writes_four_files_and_leaves_no_other(four_arms, tmp_path):
    files = write_leaderboard(board(four_arms), tmp_path / "new")
    assert {kind: path.name for kind, path in files.items()} == {
        kind: f"leaderboard.{kind}" for kind in ("json", "md", "csv", "html")
    }
    assert sorted(files.values()) == sorted((tmp_path / "new").iterdir())


def test_a_failure_leaves_the_previous_files_whole(four_arms, tmp_path, monkeypatch):
    files = write_leaderboard(board(four_arms, title="first"), tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: pytest.fail("no rename"))
    with pytest.raises(pytest.fail.Exception, match="no rename"):
        write_leaderboard(board(four_arms, title="second"), tmp_path)
    assert json.loads(files["json"].read_text())["title"] == "first"


def test_json_round_trips(four_arms, entry):
    entries = [*four_arms, entry(seed=1, metrics=FIGURES)]
    leaderboard = board(
        entries,
        notes=["a note"],
        comparisons=[comparison()],
        references=published_references(["cifar10"]),
        protocol={"Attacks": "PGD"},
    )
    document = json.loads(render_json(leaderboard))
    assert document["version"] == 2
    assert document["notes"] == ["a note"]
    assert document["protocol"] == {"Attacks": "PGD"}
    arms = [plain.pop("arm") for plain in document["entries"]]
    assert arms == [entry.arm for entry in entries]
    assert [Entry(**plain) for plain in document["entries"]] == entries
    for plain, row in zip(document["rows"], leaderboard.rows, strict=True):
        figures = {name: Figure(**values) for name, values in plain.pop("figures").items()}
        assert (figures, plain.pop("missing")) == (row.figures, row.missing)
        assert plain | {"seeds": tuple(plain["seeds"])} == row.record()
    assert document["comparisons"][0].pop("verdict") == "better"
    assert Comparison(**document["comparisons"][0]) == comparison()
    assert len(document["references"]) == len(leaderboard.references)


def test_json_has_the_evidence_without_the_picture(four_arms):
    bins = (Bin(count=100, confidence=0.9, accuracy=0.94),)
    evidence = Evidence(
        class_names=("a", "b"),
        confusion=((40, 10), (0, 50)),
        reliability=bins,
        reliability_scaled=bins,
        attention=b"a picture",
    )
    name = "digits, both, vit_nano"
    key = build_rows(four_arms)[-1].key
    document = json.loads(render_json(board(four_arms, evidence={key: evidence})))
    expected = dataclasses.asdict(evidence)
    del expected["attention"]
    assert document["evidence"][name] == json.loads(json.dumps(expected))


def test_csv_has_one_line_a_row_and_every_figure(four_arms, entry, tmp_path):
    entries = [*four_arms, entry(seed=1, metrics=FIGURES)]
    leaderboard = board(entries)
    files = write_leaderboard(leaderboard, tmp_path)
    lines = list(csv.DictReader(files["csv"].read_text(encoding="utf-8").splitlines()))
    assert [float(line["top1_mean"]) for line in lines] == [r.top1_mean for r in leaderboard.rows]
    assert lines[0]["seeds"] == "0 1"
    assert lines[1]["top1_std"] == ""
    parts = {f"{name}_{part}" for name in FIGURES for part in ("mean", "std", "n")}
    assert set(lines[0]) == set(leaderboard.rows[0].record()) | parts


def test_csv_counts_the_runs_that_have_a_figure(entry, tmp_path):
    runs = [entry(metrics={"calibration/ece": 0.02}), entry(seed=1)]
    runs.append(entry(seed=2, metrics={"calibration/ece": 0.04}))
    text = write_leaderboard(board(runs), tmp_path)["csv"].read_text(encoding="utf-8")
    (line,) = csv.DictReader(text.splitlines())
    assert line["calibration/ece_n"] == "2"
    assert float(line["calibration/ece_mean"]) == pytest.approx(0.03)
    assert float(line["calibration/ece_std"]) == pytest.approx(0.02 / 2**0.5)


def test_markdown_table_has_equal_cells_in_every_line(four_arms):
    lines = render_markdown(board(four_arms)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 4
    assert {line.count("|") for line in table} == {table[0].count("|")}
    assert "**94.00**" in table[-1]


def test_markdown_has_a_table_for_each_group_of_figures(entry):
    runs = [entry(metrics=FIGURES), entry("both", metrics={"calibration/ece": 0.04})]
    text = render_markdown(board(runs))
    headings = [line for line in text.splitlines() if line.startswith("## digits")]
    assert headings == [
        "## digits, Calibration",
        "## digits, Corruptions",
        "## digits, Attacks (not adversarially trained)",
        "## digits, Cost",
    ]
    assert "| scratch | 71.00 | 69.00 |" in text
    assert "| both |  |  |" in text
    assert "| arm | PGD 1/255, % | PGD 8/255, % |" in text


def test_markdown_says_better_only_where_the_test_does(four_arms):
    some = [comparison(), comparison(first="SSL start, vit_nano", low=-0.01, p_adjusted=0.3)]
    text = render_markdown(board(four_arms, comparisons=some))
    assert text.count("| better |") == 1
    assert "| +4.00 | +1.00 to +7.00 | 0.012 | McNemar | better |" in text
    assert "| 0.300 | McNemar | not told apart |" in text


def test_markdown_marks_published_figures_of_other_images(entry):
    references = published_references(["cifar10-jpeg"])
    text = render_markdown(board([entry(dataset="cifar10-jpeg")], references=references))
    assert "## cifar10-jpeg, published figures, not measured here" in text
    assert "Measured on cifar10: cifar10-jpeg has other images." in text
    text = render_markdown(board([entry(dataset="cifar10")], references=references))
    assert "has other images" not in text


def test_markdown_escapes_names(entry):
    leaderboard = board(
        [entry(model=HOSTILE, run=HOSTILE, metrics={f"ood/auroc/msp/{HOSTILE}": 0.9})],
        notes=[HOSTILE],
        title=HOSTILE,
        protocol={HOSTILE: HOSTILE},
        comparisons=[comparison(first=HOSTILE, second=HOSTILE)],
    )
    text = render_markdown(leaderboard)
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|x" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        rows = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_no_runs_give_files_with_the_notes(tmp_path):
    files = write_leaderboard(board([], notes=["cell 1 failed"]), tmp_path)
    page = files["html"].read_text(encoding="utf-8")
    assert "No run was scored." in page
    assert "cell 1 failed" in page
    assert len(files["csv"].read_text().splitlines()) == 1


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


def test_table_leaves_out_a_top5_that_says_nothing(entry, four_arms):
    assert "top-5" in terminal_of(four_arms)[0]
    assert "top-5" not in terminal_of([entry(top5=1.0)])[0]


def test_table_fits_in_100_columns(entry):
    big = {
        "n_test": 10_000,
        "num_labels": 50_000,
        "samples_seen": 15_000_000,
        "wall_s": 3_500.0,
        "total_wall_s": 180_000.0,
        "metrics": FIGURES
        | {f"attack/{attack}/{size}": 0.1 for attack in ("fgsm", "pgd") for size in (1, 2, 4, 8)}
        | {f"ood/auroc/msp/a-data-set-with-a-long-name-{place}": 0.9 for place in range(3)},
    }
    runs = [entry("token labels", correct=9_000 + seed, seed=seed, **big) for seed in range(3)]
    plain, _ = terminal_of([*runs, entry(dataset="a-data-set-with-a-long-name")], width=200)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 100
    assert "50 h 00 min" in plain
    assert "\u2026" not in plain


def test_table_has_a_second_part_where_more_was_measured(entry, four_arms):
    plain, _ = terminal_of([entry(metrics=FIGURES), entry("both")])
    second = plain.split("\n\n", 1)[1]
    scratch = next(line for line in second.splitlines() if line.startswith("scratch"))
    assert scratch.split() == ["scratch", "71.00", "69.00", "5.12", "41.00", "1.00"]
    assert "not adversarially trained" in second
    assert "adversarially" not in terminal_of(four_arms)[0]
    assert terminal_of(four_arms)[0].count("scratch") == 1


def test_table_takes_names_literally(entry):
    plain, _ = terminal_of(
        [entry(model="[red]x[/red]", metrics={"ood/auroc/msp/[red]y[/red]": 0.5})]
    )
    assert "[red]x[/red]" in plain
    assert "[red]y[/red]" in plain


def test_calibration_alone_makes_no_second_table(entry):
    plain, _ = terminal_of([entry(metrics={"calibration/ece": 0.05, "cost/macs": 2.0})])
    assert "ECE" not in plain
    assert plain.count("scratch") == 1


@pytest.mark.parametrize("uneven", [False, True])
def test_every_file_has_the_commonest_class_and_mean_per_class_where_classes_are_uneven(
    entry, tmp_path, uneven
):
    counts = (
        [[60, 0, 0], [5, 15, 0], [5, 0, 15]] if uneven else [[30, 5, 0], [0, 30, 5], [0, 0, 30]]
    )
    yardstick = measure_yardstick(counts, ("cat", "dog", "owl"))
    metrics = {"accuracy/mean_per_class": yardstick.mean_per_class}
    files = write_leaderboard(
        board([entry(correct=90, yardstick=yardstick, metrics=metrics)]), tmp_path
    )
    share = f"{100 * yardstick.commonest_share:.2f}"
    assert f"| {share} |" in files["md"].read_text()
    assert f"naming cat always: {share} %" in files["html"].read_text()
    (line,) = csv.DictReader(files["csv"].read_text().splitlines())
    assert float(line["commonest_share"]) == yardstick.commonest_share
    assert json.loads(files["json"].read_text())["rows"][0]["commonest"] == "cat"
    assert ("mean per class" in files["md"].read_text()) == uneven
    table, _ = terminal_of([entry(correct=90, yardstick=yardstick, metrics=metrics)])
    assert ("mean per" in table) == uneven
    assert re.search(rf"one class +{share}", table)
