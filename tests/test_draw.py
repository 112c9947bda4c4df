"""Drawings: every component, in SVG and in the terminal; what they say of an architecture, and that it fits."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, Tab
from hypothesis import given
from hypothesis import strategies as st
from own_plugins import own_plugins

from ablate.cli import main
from ablate.draw import svg, text
from ablate.draw.anatomy import Given, figure
from ablate.draw.folding import folded
from ablate.draw.parts import Figure, Fork, every
from ablate.show import figure_of, figures_of, shown
from ablate.subject import MODELS, VOCAB, Subject, T, subjects

SPACE = "{http://www.w3.org/2000/svg}"
SIZES = {"name": 13, "op-name": 13, "note": 11, "title": 16}
SMALL = ["d_model=16", "n_heads=2", "seq_len=8", "vocab=11"]
PLAIN = [each for each in subjects() if each.entry.slot in MODELS and not each.component.options]


def drawn(name: str, *sizes: str) -> Figure:
    return figure_of(shown(name, [*SMALL, *sizes]))


def of(subject: Subject) -> Figure:
    return figure(subject.name, Given(subject.arch, VOCAB, T, subject.entry.causal, subject.shape))


def overflowing(document: str) -> list[str]:
    """Texts that are wider than the box that they stand in, by the widest fonts, or stand above or below it."""
    found = []
    for box in ET.fromstring(document).iter(f"{SPACE}g"):
        if box.get("class") != "box":
            continue
        rect = next(box.iter(f"{SPACE}rect"))
        left, top, width, height = (float(rect.get(side, 0)) for side in ("x", "y", "width", "height"))
        for line in box.iter(f"{SPACE}text"):
            size = SIZES[str(line.get("class"))]
            half, y = svg.measure(line.text or "", size) / 2, float(line.get("y", 0))
            x = float(line.get("x", 0))
            if x - half < left or x + half > left + width or y > top + height or y - 0.8 * size < top:
                found.append(line.text or "")
    return found


@pytest.mark.parametrize("subject", PLAIN, ids=lambda each: each.name)
def test_every_component_is_drawn_and_fits(subject: Subject) -> None:
    made = of(subject)
    document = svg.draw(made)
    root = ET.fromstring(document)
    assert [child.tag for child in root][:2] == [f"{SPACE}title", f"{SPACE}desc"] and root.get("role") == "img"
    assert not overflowing(document)
    for width in (40, 80, 200):
        lines = text.draw([made], width).splitlines()
        assert max(map(text.width_of, lines)) <= width
    assert text.draw([made], 80, unicode=False).isascii()
    if subject.entry.slot in ("mixer", "channel", "embedding", "position", "head", "model"):
        shows = subject.entry.name != "none"
        assert (subject.entry.name in made.in_words()) == shows
    assert not made.marked


def test_the_parts_of_a_decoder_in_their_order() -> None:
    words = drawn("baseline", "depth=3").in_words()
    order = ["tokens", "embedding: table", "position: learned", "× 3", "layernorm", "attention", "joined by +"]
    order += [
        "layernorm",
        "ffn",
        "up, 16→64",
        "gelu",
        "down, 64→16",
        "final layernorm",
        "head: softmax",
        "p(next token)",
    ]
    at = 0
    for part in order:
        assert part in words[at:], part
        at = words.index(part, at)
    assert "weights of the embedding" in words  # the head is tied


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("post_norm", "(the stream itself and attention"),
        ("pre_norm", "(the stream itself and layernorm; attention"),
        ("deepnorm", "× 1.68 and attention"),
        ("rezero", "; × scale, joined by +)"),
        ("no_residual", "no residual (differs) [layernorm; attention"),
        ("no_norm", "no norm (differs)"),
        ("nope", "no position (differs)"),
        ("swiglu", "(gate, 16→42; swish and up, 16→42, joined by ×); down, 42→16"),
        ("rope", "(q, 16→16 and k, 16→16, joined by rope)"),
        ("alibi", "position alibi adds to attention scores"),
        ("grouped_query", "grouped_query, 1.09k params · 2 heads (differs)"),
        ("block_sharing", "× 4, one set of weights"),
        ("macaron", "joined by +"),
    ],
)
def test_what_a_variant_shows(name: str, words: str) -> None:
    assert words in drawn(name).in_words()


def test_what_runs_is_drawn_as_it_runs() -> None:
    """Of experts how many a token uses; of a funnel the lengths; of a universal transformer how often it runs."""
    small = ["d_model=16", "n_heads=2", "seq_len=16", "vocab=11", "depth=6"]
    experts = figure_of(shown("narang2021+mixture_of_experts", [*small, "d_head=8"])).in_words()
    assert "router, 16→" in experts and "a token: 2 of" in experts and "one layer" in experts
    funnel = figure_of(shown("narang2021+funnel_transformer", small)).in_words()
    assert "length 16 → 8" in funnel and "length 8" in funnel and "length 4" in funnel
    (universal,) = (each for each in subjects("universal") if not each.component.options)
    assert "run 6 times" in of(universal).in_words()


def test_an_encoder_decoder_has_its_memory_read() -> None:
    made = drawn("vaswani2017", "depth=2")
    assert [tower.name for tower in made.towers] == ["encoder", "decoder"] and made.memory
    assert [sum(getattr(part, "reads", False) for part in every(tower.chain)) for tower in made.towers] == [0, 1]
    assert "shared with the decoder" in made.in_words()
    apart = drawn("t5_v1_1", "depth=2").in_words()
    assert "weights of the embedding" not in apart


@given(st.text(alphabet="sfc", max_size=40))
def test_folding_says_a_sequence_and_no_more_than_that(order: str) -> None:
    runs = folded(order)
    assert "".join(order[run.start : run.stop] * run.times for run in runs) == order
    assert sum(run.stop - run.start for run in runs) <= len(order)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("s" * 6 + "sf" * 10 + "f" * 6, [("s", 6), ("sf", 10), ("f", 6)]),
        ("s" * 12, [("s", 12)]),
        ("aaab" * 3, [("aaab", 3)]),
        ("sf", [("s", 1), ("f", 1)]),
    ],
)
def test_folding_as_people_write_it(order: str, said: list[tuple[str, int]]) -> None:
    assert [(order[run.start : run.stop], run.times) for run in folded(order)] == said


def test_a_long_order_is_drawn_small_and_explained_beside() -> None:
    made = drawn("sandwich_2", "depth=4")
    (tower,) = made.towers
    assert {each.name for each in made.beside} == {"every attention", "every ffn"}
    assert not any(isinstance(part, Fork) for part in every(tower.chain))
    assert all(isinstance(each.chain[-1], Fork) for each in made.beside)


PLUGIN = '''
from torch import nn
from ablate import Channel, Context, Linear, Residual, Site, register

@register("channel", "two_ways", paper="-")
class TwoWays(Channel):
    """W (tanh(A x) * B x) + C x."""

    def __init__(self, site: Site):
        super().__init__(site)
        self.a, self.b, self.c = (Linear(site.d_model, 24, bias=False) for _ in range(3))
        self.out = Linear(24, site.d_model, bias=False, role="write")

    def forward(self, x_BTD, ctx: Context):
        return self.out(self.a(x_BTD).tanh() * self.b(x_BTD) + self.c(x_BTD))


@register("residual", "halved", paper="-")
class Halved(Residual):
    """x / 2 + f(x)."""

    def forward(self, x_BTD, f):
        return 0.5 * x_BTD + f(x_BTD)
'''


def test_a_plugin_is_drawn_from_what_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    file = tmp_path / "drawn.svg"
    told = ["--set", "arch.sublayers.f=two_ways", "--set", "arch.residual=halved", "--plugin", str(plugin)]
    with own_plugins():
        assert main(["show", "baseline", *told, "--svg", str(file), *(f"--set={each}" for each in SMALL)]) == 0
        words = figure_of(shown("baseline", ["arch.sublayers.f=two_ways", "arch.residual=halved", *SMALL])).in_words()
    assert "((a, 16→24; tanh and b, 16→24, joined by ×) and c, 16→24, joined by +); out, 24→16" in words
    assert "(× 0.5 and two_ways" in words
    assert "two_ways" in capsys.readouterr().out and "two_ways" in file.read_text()


def test_two_beside_each_other_say_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = figures_of("rmsnorm", "rope", SMALL)
    assert one.marked and two.marked and (one.against, two.against) == ("rope", "rmsnorm")
    file = tmp_path / "both.svg"
    sizes = [f"--set={each}" for each in SMALL]
    assert main(["show", "rmsnorm", "--diff", "rope", "--svg", str(file), *sizes]) == 0
    out = capsys.readouterr().out
    assert re.search(r"norm +rmsnorm +layernorm", out) and re.search(r"position +learned +rope", out)
    assert not re.search(r"\n +embedding ", out)  # they have it in common
    titles = [
        each.text for each in ET.fromstring(file.read_text()).iter(f"{SPACE}text") if each.get("class") == "title"
    ]
    assert {"rmsnorm", "rope"} <= set(titles)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_show_is_no_wider_than_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in (["vaswani2017+swiglu"], ["gpt2+sandwich_2", "--diff", "llama2"]):
        assert main(["show", *arguments, *(f"--set={each}" for each in (*SMALL, "depth=4"))]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= width


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_no_text_leaves_its_box_in_a_browser(tmp_path: Path) -> None:
    small = [*SMALL, "depth=4"]
    names = ["gpt2+swiglu", "vaswani2017", "narang2021+evolved_transformer", "sandwich_2", "convs2s", "dit"]
    outside = """[...document.querySelectorAll('g.box')].flatMap(box => {
        const a = box.querySelector('rect').getBBox();
        return [...box.querySelectorAll('text')].filter(line => { const b = line.getBBox();
            return b.x < a.x || b.x + b.width > a.x + a.width || b.y < a.y || b.y + b.height > a.y + a.height;
        }).map(line => line.textContent); })"""
    page = "(b => [b.width, b.height])(document.documentElement.viewBox.baseVal)"
    all_of_it = "(b => [b.x + b.width, b.y + b.height])(document.documentElement.getBBox())"
    grounds = []
    with Browser(tmp_path / "profile") as browser:
        tab = Tab(browser)
        for name in names:
            file = tmp_path / f"{name}.svg"
            sizes = ["d_model=64", *small[1:]] if name == "dit" else small
            file.write_text(svg.draw(figure_of(shown(name, sizes))))
            tab.open(file)
            assert tab.run(outside) == []
            assert all(inside <= whole for inside, whole in zip(tab.run(all_of_it), tab.run(page), strict=True))
            assert not tab.errors()
        for scheme in ("light", "dark"):
            tab.media(scheme=scheme)
            grounds.append(tab.run("getComputedStyle(document.querySelector('.ground')).fill"))
    assert len(set(grounds)) == 2
