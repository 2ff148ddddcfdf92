import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from io import BytesIO
from json import loads
from pathlib import Path

import pytest
from PIL import Image

from smallvit.leaderboard.board import Bin, Evidence, Leaderboard
from smallvit.leaderboard.comparison import Comparison
from smallvit.leaderboard.published import published_references
from smallvit.leaderboard.report_page import render_html, render_summary
from smallvit.leaderboard.rows import build_rows, separate

VOID = {"meta", "img"}
HOSTILE = "<script>alert(1)</script>|x"
CHROMIUM = shutil.which("chromium")


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


def board(entries, title="A title", **parts):
    return Leaderboard(title=title, rows=build_rows(entries), entries=entries, **parts)


def html_of(entries, **parts):
    return render_html(board(entries, **parts))


def metrics_of(top1):
    """Every kind of figure, made up; corruptions cost 2 points a severity."""
    types = [("generated", "fog"), ("generated", "spatter"), ("official", "fog")]
    return {
        "accuracy/mean_per_class": top1,
        "accuracy/nll": 0.51,
        "calibration/ece": 0.0512,
        "features/knn": top1 - 0.05,
        **{f"corruption/{o}": top1 - 0.06 for o in ("generated", "generated_extra", "official")},
        **{
            f"corruption/{origin}/{name}/{severity}": top1 - 0.02 * severity
            for origin, name in types
            for severity in range(1, 6)
        },
        "attack/pgd/1": 0.4,
        "attack/pgd/8": 0.0,
        "attack/fgsm/8": 0.1,
        "ood/auroc/msp/svhn": 0.91,
        "ood/fpr95/msp/svhn": 0.31,
        "cost/macs": 2_500_000.0,
        "cost/latency_ms": 4.32,
    }


def evidence_of(num_classes=3):
    picture = BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    bins = (Bin(count=20, confidence=0.4, accuracy=0.5), Bin(count=80, confidence=0.9, accuracy=1))
    confusion = [[0] * num_classes for _ in range(num_classes)]
    for true in range(num_classes):
        confusion[true][true] = 30
    confusion[1][2] = 10
    return Evidence(
        class_names=tuple(f"class-{place}" for place in range(num_classes)),
        confusion=tuple(map(tuple, confusion)),
        reliability=bins,
        reliability_scaled=bins,
        attention=picture.getvalue(),
    )


def comparison_of(rows, first, second, **changes):
    values = {
        "difference": 0.04,
        "low": 0.01,
        "high": 0.07,
        "p_value": 0.004,
        "p_adjusted": 0.012,
        "test": "t over seeds",
        "num_seeds": 2,
        "n_test": 100,
    }
    return Comparison(dataset=rows[0].dataset, first=first, second=second, **(values | changes))


@pytest.fixture
def rich(entry):
    """Two arms over two parts of the labels and two seeds, with everything there is."""
    entries = [
        entry(
            arm,
            correct=correct - (0 if part == 1 else 20) + seed,
            seed=seed,
            label_fraction=part,
            num_labels=int(1000 * part),
            dataset="cifar10-jpeg",
            metrics=metrics_of(correct / 100),
        )
        for arm, correct in {"scratch": 80, "both": 86}.items()
        for part in (1.0, 0.1)
        for seed in range(2)
    ]
    rows = build_rows(entries)
    return board(
        entries,
        comparisons=[comparison_of(rows, "both, vit_nano", "scratch, vit_nano")],
        evidence={row.key: evidence_of() for row in rows},
        references=published_references(["cifar10-jpeg"]),
        protocol={"Attacks": "PGD with 20 steps."},
    )


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


def test_the_table_of_a_notebook_takes_names_literally_too(entry):
    table = render_summary(board([entry(dataset=HOSTILE, model=HOSTILE)]), Path(HOSTILE))
    assert "script" not in Page(table).tags
    assert table.count("&lt;script&gt;") == 4  # dataset, model, verdict and page


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


def test_accuracies_alone_make_a_short_page(four_arms):
    html = html_of(four_arms)
    tags = Page(html).tags
    assert tags.count("table") == 2  # rows and runs
    assert "polyline" not in tags
    assert "h3" not in tags
    assert 'class="toggles"' not in html


def test_every_part_has_its_heading_and_an_address_that_leads_to_it(rich):
    html = render_html(rich)
    page = Page(html)
    for heading in (
        "Paired comparisons",
        "Few labels",
        "Corruptions",
        "Attacks: not adversarially trained",
        "Calibration",
        "Classes and attention",
        "Published figures",
    ):
        assert re.search(rf"<h3 [^>]*>{heading}</h3>", html), heading
    inner = [address[1:] for address in page.addresses if address.startswith("#")]
    assert len(inner) == 7
    assert set(inner) <= set(re.findall(r'id="([^"]+)"', html))


def test_pictures_are_inside_the_page(rich):
    pictures = [each for each in Page(render_html(rich)).addresses if not each.startswith("#")]
    assert len(pictures) == len(rich.rows)
    assert all(address.startswith("data:image/png;base64,iVBORw0KGgo") for address in pictures)


def test_generated_and_official_corruptions_are_never_in_one_column(rich):
    html = render_html(rich)
    heads = re.findall(r'data-band="corruptions"><button type="button">([^<]*)<', html)
    assert heads == ["generated, %", "generated, 4 extra, %", "official, %"]
    assert "Official corruptions: top-1 in percent, mean over severities" in Page(html)
    assert html.count('class="heat"') == 2


def test_the_heat_map_shows_means_over_severities(entry):
    html = html_of([entry(correct=90, metrics=metrics_of(0.9))])
    heat = html.split('class="heat"')[2].split("</table>")[0]
    assert re.findall(r"<th colspan=[^>]*first[^>]*>(\w+)<", heat) == ["weather", "extra"]
    # Clean, the mean as given, fog and spatter: 90 % less 2 points a severity, severities 1 to 5.
    cells = re.findall(r'<td class="shaded" style="--s:([\d.]+)">([\d.]+)<', heat)
    assert [value for _, value in cells] == ["90.0", "84.0", "84.0", "84.0"]
    assert [float(shade) for shade, _ in cells] == [1, 0, 0, 0]


def test_severity_starts_with_the_images_as_they_are(entry):
    html = html_of([entry(correct=90, metrics=metrics_of(0.9))])
    assert "scratch: clean: 90.00, 1: 88.00, 2: 86.00, 3: 84.00, 4: 82.00, 5: 80.00" in html


def test_attacks_are_said_to_meet_networks_that_were_not_trained_for_them(rich):
    html = render_html(rich)
    assert 'data-band="attacks">Attacks: <em>not adversarially trained</em>' in html
    assert "scratch, PGD: 0: 80.50, 1: 40.00, 8: 0.00" in html
    assert "scratch, FGSM: 0: 80.50, 8: 10.00" in html


def test_reliability_is_a_line_over_bars_of_how_many_images_there_are(rich):
    html = render_html(rich)
    diagram = html.split('aria-label="Reliability of scratch, 100 %: ')[1].split("</svg>")[0]
    text = "20 images: confidence 40.00 %, accuracy 50.00 %"
    assert diagram.startswith(f"{text}; 80 images")
    assert diagram.count(f"<title>{text}</title>") == 2  # before and after temperature scaling
    assert 'points="40,50 90,0"' in diagram
    assert re.findall(r'<rect class="part"[^>]* height="([\d.]+)"', diagram) == ["5.0", "20.0"]


def test_a_point_says_in_words_what_it_shows(rich):
    assert "<title>scratch, PGD, 1: 40.00 %</title>" in render_html(rich)


def test_few_labels_are_drawn_where_a_row_has_several_parts(rich, four_arms):
    assert "both: 10 %: 66.50, 100 %: 86.50" in render_html(rich)
    assert "training labels used" not in html_of(four_arms)


def test_better_stands_only_where_the_test_says_so(four_arms):
    rows = build_rows(four_arms)
    lower = {"difference": -0.04, "low": -0.07, "high": -0.01}
    some = [
        comparison_of(rows, "both, vit_nano", "scratch, vit_nano"),
        comparison_of(rows, "SSL start, vit_nano", "scratch, vit_nano", p_adjusted=0.2),
        comparison_of(rows, "scratch, vit_nano", "both, vit_nano", **lower),
    ]
    page = Page(html_of(four_arms, comparisons=some))
    words = [text.strip() for text in page.text]
    assert [words.count(each) for each in ("better", "worse", "not told apart")] == [1, 1, 1]
    assert "Intervals and p-values are adjusted alike for the 3 comparisons" in page


def test_rows_of_other_data_have_a_section_of_their_own(entry):
    runs = separate([entry(dataset="cifar10"), entry(dataset="cifar10", fingerprint="e" * 16)])
    html = html_of(runs, references=published_references(["cifar10"]))
    headings = re.findall(r"<h2>(cifar10[^<]*)</h2>", html)
    assert headings == sorted({entry.shown_dataset for entry in runs})
    assert len(headings) == 2
    assert html.count("Published figures</h3>") == 2
    assert "has other images" not in html


def test_comparisons_stay_with_their_dataset(entry):
    runs = [entry(), entry("both"), entry(dataset="svhn")]
    rows = build_rows(runs)
    html = html_of(runs, comparisons=[comparison_of(rows, "both, vit_nano", "scratch, vit_nano")])
    assert html.count("Paired comparisons of") == 1
    assert "Paired comparisons of digits" in html


def test_published_figures_are_marked_and_other_images_named(rich, entry):
    html = render_html(rich)
    assert html.count('<span class="published">published</span>') == len(rich.references)
    assert html.count("These were measured on cifar10. cifar10-jpeg has other images") == 2
    assert "best epoch on the test split, one seed" in html
    assert "samples seen unknown" in html
    same = html_of([entry(dataset="cifar10")], references=rich.references)
    assert "has other images" not in same
    assert "mean corruption error" not in same  # no corruption was measured here
    other = html_of([entry(dataset="svhn")], references=rich.references)
    assert "Published figures" not in other


def test_a_matrix_of_many_classes_is_a_list_of_pairs(entry):
    runs = [entry()]
    key = build_rows(runs)[0].key
    small = html_of(runs, evidence={key: evidence_of(20)})
    large = html_of(runs, evidence={key: evidence_of(21)})
    assert 'class="heat confusion"' in small
    assert 'class="heat confusion"' not in large
    assert "<li>class-1, class-2: 10 (25.0 %)</li>" in large


def test_the_confusion_matrix_is_in_percent_of_the_true_class(rich):
    html = render_html(rich)
    matrix = html.split('class="heat confusion"')[1].split("</table>")[0]
    cells = re.findall(r'<td class="(\w+)"[^>]*title="(\d+) images">(\d*)<', matrix)
    assert cells[3:6] == [("wrong", "0", ""), ("shaded", "30", "75"), ("wrong", "10", "25")]


def test_only_the_best_row_is_unfolded(rich):
    assert re.findall(r"<details( open)?>\s*<summary>([^<]*)", render_html(rich)) == [
        ("", "scratch, 100\u00a0%"),
        (" open", "both, 100\u00a0%"),
        ("", "scratch, 10\u00a0%"),
        ("", "both, 10\u00a0%"),
    ]


def test_evidence_of_no_row_is_a_mistake(entry):
    with pytest.raises(AssertionError, match=r"evidence of no row: .*digits"):
        html_of([entry()], evidence={entry("both").key: evidence_of()})


def test_the_columns_in_which_less_is_better_are_named(rich):
    assert "Lower is better: NLL; ECE; multiply-adds; latency, batch 1." in Page(render_html(rich))


PROBE = """<script>
const said = [];
addEventListener("error", (event) => said.push(event.message));
addEventListener("securitypolicyviolation", (event) => said.push(`refused ${event.blockedURI}`));
addEventListener("load", () => {
  const root = document.documentElement;
  const table = document.querySelector("table.sortable");
  const firsts = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const press = (head) => {
    const buttons = [...table.querySelectorAll("thead button")];
    buttons.find((button) => button.textContent === head).click();
    return firsts();
  };
  const seen = () => [...table.tHead.rows[1].cells].filter((cell) => cell.offsetWidth).length;
  const shown = { width: innerWidth, page: root.scrollWidth, before: firsts() };
  shown.top1 = press("top-1, %");
  shown.again = press("top-1, %");
  shown.arm = press("arm");
  shown.sorted = table.querySelectorAll("[aria-sort]").length;
  shown.columns = seen();
  document.querySelector(".toggles button[data-band=corruptions]")?.click();
  shown.fewer = seen();
  shown.requests = performance.getEntriesByType("resource").map((entry) => entry.name)
    .filter((name) => !name.startsWith("data:"));
  shown.pictures = [...document.images].map((image) => image.naturalWidth);
  setTimeout(() => parent.postMessage(JSON.stringify(Object.assign(shown, { said })), "*"), 50);
});
</script>"""
COLLECT = """<pre id="said"></pre><script>
addEventListener("message", (event) => { said.textContent += event.data + "\\n"; });
</script>"""


def browse(tmp_path, html, widths, *, scheme="light"):
    """Load a page in frames of some widths, press its buttons and return what it was like."""
    (tmp_path / "page.html").write_text(html.replace("<meta name", PROBE + "<meta name", 1))
    # A headless window is at least 500 wide; a frame can be narrower.
    frames = "".join(
        f'<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>'
        for width in widths
    )
    (tmp_path / "frames.html").write_text(COLLECT + frames)
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr "
        "--virtual-time-budget=5000 --window-size=1400,900 --dump-dom"
    )
    done = subprocess.run(
        [
            *(str(CHROMIUM), *options.split(), f"--user-data-dir={tmp_path / 'profile'}"),
            f"--blink-settings=preferredColorScheme={1 if scheme == 'light' else 0}",
            (tmp_path / "frames.html").as_uri(),
        ],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = unescape(done.stdout.split('<pre id="said">')[1].split("</pre>")[0]).splitlines()
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return sorted(map(loads, lines), key=lambda shown: -shown["width"]), console


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_sorts_and_hides_without_a_request_or_a_wide_page(rich, tmp_path):
    pages, console = browse(tmp_path, render_html(rich), [1280, 400])
    assert console == []
    assert [page["width"] for page in pages] == [1280, 400]
    best, middle, low, least = (
        "both, 100\u00a0%",
        "scratch, 100\u00a0%",
        "both, 10\u00a0%",
        "scratch, 10\u00a0%",
    )
    for page in pages:
        assert page["said"] == []
        assert page["requests"] == []
        assert page["page"] <= page["width"]
        assert page["pictures"] == [8] * len(rich.rows)
        assert page["before"] == [middle, best, least, low]
        assert page["top1"] == [best, middle, low, least]
        assert page["again"] == [least, low, middle, best]
        assert page["arm"] == [low, best, least, middle]
        assert page["sorted"] == 1
        assert page["columns"] - page["fewer"] == 3


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_browser_would_tell_of_a_request_and_of_an_error(four_arms, tmp_path):
    html = html_of(four_arms).replace(
        "</main>", '<img src="https://example.org/x.png"></main><script>missing();</script>'
    )
    (page,), console = browse(tmp_path, html, [800], scheme="dark")
    assert any("missing is not defined" in text for text in page["said"])
    assert "refused https://example.org/x.png" in page["said"]
    assert any("example.org" in line for line in console)
