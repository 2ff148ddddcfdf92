import json

from smallvit.engine.curves import PANELS, draw_curves


def panels_of(tmp_path, monkeypatch, *rows: dict[str, float | None]) -> list[str]:
    """Return the titles of the panels that are drawn."""
    from matplotlib.figure import Figure

    titles: list[str] = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *_, **__: titles.extend(a.get_title() for a in figure.axes),
    )
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows)))
    draw_curves(path, tmp_path / "plots" / "curves.png", "a run")
    return titles


def test_a_panel_is_drawn_for_each_thing_that_was_logged(tmp_path, monkeypatch):
    rows = [{"train/loss": 1.0, "opt/lr": 0.1}, {"features/rank": 3.0, "val/knn": 0.5}]
    found = panels_of(tmp_path, monkeypatch, *rows)
    assert found == ["Loss", "Accuracy", "Effective rank", "Learning rate"]


def test_panels_without_finite_data_are_left_out(tmp_path, monkeypatch):
    assert panels_of(tmp_path, monkeypatch, {"train/loss": 1.0, "features/rank": None}) == ["Loss"]


def test_every_panel_can_be_drawn_and_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1} | {k: 0.5 for keys in PANELS.values() for k in keys}))
    draw_curves(path, tmp_path / "plots" / "curves.png", "a run")
    assert (tmp_path / "plots" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_logged_nothing_still_has_a_picture(tmp_path):
    draw_curves(tmp_path / "none.jsonl", tmp_path / "plots" / "curves.png", "a run")
    assert (tmp_path / "plots" / "curves.png").is_file()
