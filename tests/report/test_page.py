"""The page of a report: whole, by itself, in words too, and with the manifest's figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adaptc.report.drawing.charts import Axis
from adaptc.report.drawing.figures import chart
from adaptc.report.drawing.layout import Bend, place
from adaptc.report.drawing.units import megabytes, percent, seconds
from adaptc.report.facts import facts
from adaptc.report.gates import gate_figures, gates_table
from adaptc.report.page import report_html
from adaptc.report.plan import plan_of
from adaptc.report.record import Record, read_record, report_json
from adaptc.runtime.bundle.manifest import ModelRecord
from tests.report import manifests
from tests.report.pages import Element, check_page, read


def heading(root: Element, name: str) -> bool:
    return any(name in each.text for each in root.all("h2"))


def bars(root: Element, of: str) -> dict[str, str]:
    """Rows of the charts whose rows are of this, as name and value."""
    found = [t for t in root.all("table") if t.attributes.get("class") == "bars" and t.all("th")[0].text == of]
    return {row.all("th")[0].text: row.all("td")[-1].text for t in found for row in t.all("tr")[1:]}


@pytest.mark.parametrize("name", manifests.ALL)
def test_a_page_is_whole_by_itself_and_in_words(name: str) -> None:
    root = check_page(report_html(*manifests.ALL[name]))
    assert heading(root, "How it runs")
    assert heading(root, "Passes, in order")


def test_a_dense_model_has_a_short_page() -> None:
    page = report_html(manifests.DENSE, manifests.DENSE_RECORD)
    root = read(page)
    assert len(page) < 16_000
    assert not heading(root, "Gates")
    assert not heading(root, "skipped")
    tiles = {tile.all("span")[0].text: tile.all("b")[0].text for tile in root.all("li") if tile.all("b")}
    assert tiles == {"of weights read for a token": "52 MB", "of KV cache for a sequence": "2.36 MB"}
    assert bars(root, "layer") == {
        "before layers": "2.3 KB",
        "0 to 11, 12 alike": "24 MB",
        "after layers": "28 MB",
    }
    assert bars(root, "pass") == {"lower": "2.9 s", "quantize (nothing to do)": "200 ms"}
    assert "A Processor, 2 cores" in root.text
    assert "adaptc report BUNDLE --measure" in root.text


def test_the_page_has_the_figures_of_each_gate() -> None:
    root = read(report_html(manifests.GATED_LM, manifests.GATED_RECORD))
    found = bars(root, "layer")
    for gate in manifests.VERDICT.each:
        _, saves, costs = gate_figures(manifests.VERDICT, gate)
        sign = "+" if saves >= costs else "−"
        assert found[str(gate.layer)].endswith(f"{sign}{seconds(abs(saves - costs))}")
    assert found["8"].startswith("removed")
    assert found["9"].startswith("→ 7")
    assert "Kept." in root.text
    assert "4 decide for themselves, 1 follow a neighbour's gate, 1 were removed" in root.text


def test_the_skip_map_has_a_row_for_each_layer_and_a_column_for_each_budget() -> None:
    root = read(report_html(manifests.GATED_LM, manifests.GATED_RECORD))
    [found] = [table for table in root.all("table") if table.attributes.get("class") == "map"]
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in found.all("tr")[2:]}
    assert list(rows) == [str(n) for n in range(manifests.LAYERS)]
    for layer, cells in rows.items():
        assert cells == (["0", "25", "50"] if int(layer) in manifests.GATED else ["·"] * 3)


def test_curves_are_those_of_the_sweep_and_leave_out_what_nobody_would_run() -> None:
    root = read(report_html(manifests.GATED_LM, manifests.GATED_RECORD))
    pictures = {svg.all("title")[0].text: svg for svg in root.all("svg")}
    quality = pictures["Quality against what is skipped"]
    assert "learned gates: 0: 1, 10: 1.03, 20: 1.06, 30: 1.09" in quality.all("desc")[0].text
    assert len(quality.all("circle")) == 8  # whole layers lose more than anyone would take
    assert "Speed against what is skipped" in pictures
    trained = read(report_html(manifests.GATED_LM, replace(manifests.GATED_RECORD, added={})))
    [curve] = [svg for svg in trained.all("svg") if "Quality" in svg.all("title")[0].text]
    assert "25: 1.3" in curve.all("desc")[0].text


def test_the_plan_has_every_route_every_modality_and_the_gates() -> None:
    stitched = plan_of(manifests.STITCHED, {})
    assert {f"route {name}" for name in manifests.ROUTES} <= {stop.title for stop in stitched.stops.values()}
    assert sorted(end for start, end in stitched.arrows if start == "switch router") == sorted(
        manifests.ROUTES.values()
    )
    modal = plan_of(manifests.MODAL_LM, {})
    assert {" + ".join(subset) for subset in manifests.SUBSETS} <= {stop.title for stop in modal.stops.values()}
    gated = plan_of(manifests.GATED_LM, {"lm": 5_000_000})
    titles = [stop.title for stop in gated.stops.values()]
    assert "4 learned gates" in titles
    assert "dense twin" in titles
    assert gated.stops["lm"].lines == ("12 layers", "5 MB a token")


def test_what_users_name_is_quoted() -> None:
    models = {"lm": ModelRecord("<img src=x onerror=alert(1)>", None, "<b>", "llama", "0" * 64)}
    page = report_html(replace(manifests.DENSE, models=models), Record("</title><script>alert(1)</script>"))
    assert "<script" not in page
    assert "<img" not in page
    read(page)


def test_the_record_is_read_as_it_was_written_and_of_earlier_versions_what_is_there() -> None:
    text = report_json(manifests.GATED_LM, manifests.GATED_RECORD)
    assert read_record(text) == manifests.GATED_RECORD
    assert read_record('{"models": {}, "bytes_per_token": 5}') == Record()


@pytest.mark.parametrize("name", manifests.ALL)
def test_the_terminal_gets_few_lines(name: str) -> None:
    manifest, _ = manifests.ALL[name]
    brief, long = list(facts(manifest)), list(facts(manifest, details=True))
    assert len(brief) <= 9
    assert len({key for key, _ in brief}) == len(brief)
    assert len(long) > len(brief)


def test_each_gate_has_a_row_in_the_table_behind_verbose() -> None:
    rows = {row[0]: row for row in gates_table(manifests.VERDICT).rows}
    assert list(rows) == [str(each.layer) for each in manifests.VERDICT.each]
    assert rows["9"][1:3] == ("follows layer 7", "30 %")
    assert rows["8"][1:3] == ("removed", "0 %")


def test_boxes_of_a_row_stand_apart_and_arrows_go_between_them() -> None:
    names = ("a", "b", "c", "d")
    layout = place(names, [("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")], None, 100.0, 10.0, 5.0)
    assert [[node for node in row if not isinstance(node, Bend)] for row in layout.rows] == [["a"], ["b", "d"], ["c"]]
    assert abs(layout.middles["b"] - layout.middles["d"]) >= 105
    assert max(len(arrow) for arrow in layout.arrows) == 3
    assert all(0 <= middle <= layout.width for middle in layout.middles.values())


def test_axes_run_between_round_numbers() -> None:
    axis = Axis.over("x", [0.93, 1.38])
    assert (axis.low, axis.high) == (0.9, 1.4)
    assert axis.marks[0] == 0.9
    assert Axis.over("x", [1.0, 1.0]).low < Axis.over("x", [1.0, 1.0]).high


def test_bars_are_parts_of_the_longest() -> None:
    made = chart("t", [("a", {"x": 1.0, "y": 3.0}), ("b", {"x": 2.0})], str, of="o", unit="u", order=("y", "x", "z"))
    assert made.kinds == ("y", "x")
    assert [[part.percent for part in bar.parts] for bar in made.bars] == [[75.0, 25.0], [50.0]]
    assert [row[-1] for row in made.table.rows] == ["4.0", "2.0"]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (megabytes(999_600), "1 MB"),
        (megabytes(67_512_345), "67.5 MB"),
        (megabytes(999_960_000), "1 GB"),
        (megabytes(12), "12 bytes"),
        (percent(0.0712), "7.1 %"),
        (percent(0.28), "28 %"),
        (seconds(0), "0 s"),
        (seconds(0.00456), "4.56 ms"),
        (seconds(274.3), "274 s"),
    ],
)
def test_figures_are_written_as_people_read_them(text: str, right: str) -> None:
    assert text == right
