"""Tables as papers print them: every number and every text is read back from every form."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from layouts_made import HOSTILE, hostile, small

from analysis import layouts
from analysis.layouts import COUNT, Column, Layout, LayoutError, csv, frame, html, markdown, words
from analysis.layouts.layout import number

pytestmark = pytest.mark.filterwarnings("error")


def shown(text: str) -> str:
    """On one line, control characters replaced: what must be readable again."""
    return " ".join(text.split()).replace("\x07", "\ufffd").replace("\x00", "\ufffd")


def table(layout: Layout) -> ET.Element:
    return ET.fromstring(html(layout))


def text(element: ET.Element) -> str:
    return "".join(element.itertext())


def cells(layout: Layout) -> dict[str, list[ET.Element]]:
    """The rows of the HTML by the text of their first cell, without group headings."""
    rows = [list(row) for row in table(layout).iterfind("tbody/tr") if row.get("class") != "group"]
    return {text(row[0]): row for row in rows}


@pytest.mark.parametrize(
    ("value", "form", "printed"),
    [
        (2.25, ".3f", "2.250"), (-0.0123, "+.3f", "−0.012"), (0.5, "+.1f", "+0.5"), (12345, ",.0f", "12,345"),
        (math.inf, ".3f", "∞"), (-math.inf, COUNT, "−∞"), (math.nan, ".3f", ""), (0.25, ".0%", "25%"),
        (-1e-9, "+.4f", "0.0000"), (-0.0, ".1e", "0.0×10⁰"), (1.5e18, ".3g", "1.5×10¹⁸"), (-2e-7, ".1e", "−2.0×10⁻⁷"),
        (9.0, "#.3g", "9.00"), (123.0, "#.3g", "123"), (0, COUNT, "0"), (12, COUNT, "12"), (0.0123, COUNT, "0.0123"),
        (999.6, COUNT, "1.00K"), (-4000, COUNT, "−4.00K"), (234240, COUNT, "234K"), (999_600, COUNT, "1.00M"),
        (2.5e9, COUNT, "2.50B"), (1.45e12, COUNT, "1.45T"), (3e18, COUNT, "3.00×10¹⁸"),
    ],
)  # fmt: skip
def test_numbers_in_print(value: float, form: str, printed: str) -> None:
    assert number(value, form) == printed


def test_frames_have_plain_numbers_in_the_printed_order() -> None:
    found = frame(small())
    names = ["group", "name", "loss", "loss_lo", "loss_hi", "loss_sd", "loss_verdict", "loss_trial_ids", "params"]
    assert list(found) == names
    assert found["name"].tolist() == ["base", "rope", "alibi", "new", "none"]
    assert found["group"].tolist() == ["", "positions", "positions", "positions", "others"]
    assert found["loss_hi"].tolist()[:4] == [2.75, 2.5, np.inf, 3.0] and np.isnan(found["loss"][4])


def test_csv_is_the_frame() -> None:
    missing = dict.fromkeys(("loss", "loss_lo", "loss_hi"), "")
    again = pd.read_csv(io.StringIO(csv(small())), keep_default_na=False, na_values=missing)
    expected = frame(small())
    for name in ("loss", "loss_lo", "loss_hi", "params"):
        assert again[name].to_numpy() == pytest.approx(expected[name].to_numpy(dtype=float), rel=0, nan_ok=True)
    assert again["loss_trial_ids"].tolist() == ["a1 a2", "b1", "c1", "", ""]
    assert "-inf" in csv(small()) and "1450000000000.0" in csv(small())


def test_html_has_numbers_to_sort_by_and_links_to_trials() -> None:
    layout = small()
    root, rows = table(layout), cells(layout)
    assert (root.tag, root.attrib) == ("table", {"class": "layout", "data-layout": "small"})
    assert text(root.find("caption")) == "A small table. Laid out as Nobody 2020, table 1."
    heads = root.findall("thead/tr/th")
    assert [text(head) for head in heads] == ["Variant", "Loss (nats)", "Parameters"]
    assert [head.get("data-key") for head in heads] == ["name", "loss", "params"]
    groups = [text(row) for row in root.iterfind("tbody/tr[@class='group']")]
    assert groups == ["positions", "others"] and len(root.findall("tbody")) == 3
    loss = rows["alibi"][1]
    about = {"data-value": "2.75", "data-lo": "-Infinity", "data-hi": "Infinity", "data-sd": "0.5"}
    assert loss.attrib == {"class": "right worse"} | about
    assert text(loss.find("details/summary")) == "2.750 ± 0.500 [−∞, ∞]\u00a0▼"
    links = [(link.get("href"), text(link)) for link in rows["base"][1].iter("a")]
    assert links == [("#a1", "a1"), ("#a2", "a2")]
    assert [row[2].get("data-value") for row in rows.values()] == [
        "234240.0",
        "1450000000000.0",
        "999.6",
        "3e+18",
        "12.0",
    ]
    missing = rows["none"][1]
    assert (missing.attrib, text(missing)) == ({"class": "right"}, "")
    assert [row[0].get("scope") for row in rows.values()] == ["row"] * 5
    assert not list(root.iter("script")) and not list(root.iter("style")) and " style=" not in html(layout)


def test_an_interval_with_one_end_is_not_shown() -> None:
    new = cells(small())["new"][1]
    assert (text(new), new.attrib) == ("2.500\u00a0≈", {"class": "right indistinguishable", "data-value": "2.5"})


def test_emphasis_is_a_mark_with_a_legend_not_colour_alone() -> None:
    rows = cells(small())
    marks = [text(rows[name][1].find(".//span[@class='mark']")) for name in ("rope", "alibi", "new")]
    assert marks == ["▲", "▼", "≈"]
    assert [rows[name][1].get("class") for name in ("rope", "new")] == ["right better", "right indistinguishable"]
    assert [len(list(rows[name][1].iter("b"))) for name in ("base", "rope", "alibi")] == [0, 1, 0]
    told = "▲ better than the baseline; ▼ worse than the baseline; ≈ inside the noise (t-tests)."
    assert [text(row) for row in table(small()).iterfind("tfoot/tr")] == [told, "A note."]
    assert f"- {told}\n- A note.\n" in markdown(small())
    assert "| rope | **2.250 ± 0.250 [2.000, 2.500]** ▲ | 1.45T |" in markdown(small())


def test_html_escapes_what_came_from_data() -> None:
    root = table(hostile())
    rows = [row for row in root.iterfind("tbody/tr") if row.get("class") != "group"]
    assert [text(row[0]) for row in rows] == [shown(each) for each in HOSTILE]
    assert [text(row[2].find("code")) for row in rows] == [shown(each) for each in HOSTILE]
    assert [text(row) for row in root.iterfind("tbody/tr[@class='group']")] == [shown(each) for each in HOSTILE]
    assert [text(row) for row in root.iterfind("tfoot/tr")][1:] == [shown(each) for each in HOSTILE]
    known = {
        "table",
        "caption",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "a",
        "b",
        "span",
        "code",
    }
    assert {each.tag for each in root.iter()} == known
    assert all(link.get("href", "").startswith("#") for link in root.iter("a"))


def test_markdown_escapes_what_came_from_data() -> None:
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(markdown(hostile()))
    inline = [token for token in tokens if token.type == "inline"]
    for token in inline:
        kinds = {child.type for child in token.children}
        assert kinds <= {"text", "text_special", "strong_open", "strong_close", "em_open", "em_close", "code_inline"}
    texts = ["".join(child.content for child in token.children) for token in inline]
    body = texts[4:]  # after the title and three headings
    table_cells, notes = body[: 6 * len(HOSTILE)], body[6 * len(HOSTILE) :]
    assert table_cells[0::6] == table_cells[3::6] == table_cells[5::6] == [shown(each) for each in HOSTILE]
    assert table_cells[4::6] == ["1.5 ▲"] * len(HOSTILE)
    assert notes[1:] == [shown(each) for each in HOSTILE]
    opened = [token.type for token in tokens if token.type.endswith("_open") and token.level == 0]
    assert opened == ["paragraph_open", "table_open", "bullet_list_open"]


def test_markdown_leaves_no_bare_addresses() -> None:
    """GitHub makes links of these without brackets."""
    assert r"| http\://e.x/y |" in markdown(hostile())
    assert r"| www\.example.org |" in markdown(hostile()) and r"| a\@b.cd |" in markdown(hostile())


def test_csv_keeps_texts_as_they_are() -> None:
    again = pd.read_csv(io.StringIO(csv(hostile())), keep_default_na=False)
    assert again["name"].tolist() == list(HOSTILE)


@pytest.mark.parametrize("rows", [0, 1])
def test_tables_of_no_row_and_of_one(rows: int, tmp_path: Path) -> None:
    layout = Layout("few", "Few", "", small().columns, small().data.head(rows), "kind")
    assert len(frame(layout)) == rows and len(cells(layout)) == rows
    assert markdown(layout).count("\n|") == 2 + rows and "Few.**" in markdown(layout)
    files = layouts.write_bundle(layout, tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["few.html", "few.md", "few.tex", "few.csv"]
    assert [file.read_text() for file in files] == [made for _, made in layouts.bundle(layout)]


def test_layouts_that_cannot_be() -> None:
    data = pd.DataFrame({"a": ["x"], "v": ["great"]})
    for columns, given, message in (
        ((words("b", "B"),), {}, "bad: no column 'b' in the data; its columns: a, v"),
        ((words("a", "A"),), {"group": "g"}, "bad: no column 'g'"),
        ((words("a", "A"), words("a", "A")), {}, "bad: two columns are called 'a'"),
        ((), {}, "bad: no columns"),
        ((Column("a", "A", verdict="v"),), {}, "unknown verdict 'great' in v; known: better, worse"),
    ):
        with pytest.raises(LayoutError, match=message):
            Layout("bad", "", "", columns, data, **given)
    with pytest.raises(LayoutError, match="layout 'Bad name'"):
        Layout("Bad name", "", "", (words("a", "A"),), data)
