"""A figure as SVG: one file that is legible on light and dark grounds, on paper, and read aloud."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from ablate.draw.letters import pixels
from ablate.draw.letters import wrapped as break_lines
from ablate.draw.parts import Box, Chain, Figure, Fork, Frame, Part, main_way

WIDTH, NARROW = 244, 84  # of a box, and of one among several ways, in pixels
GAP, LANE, PAD, MARGIN = 15, 24, 9, 26  # between parts, of a line beside them, inside of boxes, around everything
SIZE, SMALL = 13, 11  # of letters
SIDE = 104  # of what is said beside repeated layers
HIGH = 1100  # of a column in which things stand above each other
BETWEEN, APART = 56, 40  # towers beside each other, what explains them above each other

STYLE = """
text { font: 13px Helvetica, Arial, "DejaVu Sans", sans-serif; fill: #1b2430; }
.name { font-weight: 600; } .title { font-size: 16px; font-weight: 600; }
.note, .way { font-size: 11px; fill: #4a5564; }
.ground { fill: #ffffff; } .line { stroke: #3a4656; fill: none; } .head { fill: #3a4656; }
.part { fill: #eaf0f7; stroke: #3a4656; } .op { fill: #ffffff; stroke: #7b8794; } .end { fill: none; stroke: none; }
.frame { fill: #f6f8fb; stroke: #3a4656; } .repeat { fill: none; stroke: #6b7785; stroke-dasharray: 5 4; }
.changed { fill: #ffe3bf; stroke: #a84300; stroke-width: 2.5; } .repeat.changed { fill: none; }
.frame.changed { fill: #fff5e8; } .mark { fill: #a84300; }
@media (prefers-color-scheme: dark) {
text { fill: #e7eaed; } .note, .way { fill: #b4bec9; } .ground { fill: #14171b; } .line { stroke: #a9b4c0; }
.head { fill: #a9b4c0; } .part { fill: #26303b; stroke: #a9b4c0; } .op { fill: #14171b; stroke: #8693a1; }
.frame { fill: #1b2027; stroke: #a9b4c0; } .repeat { fill: none; stroke: #8693a1; }
.changed { fill: #4c2f10; stroke: #ffad5c; } .frame.changed { fill: #2c2014; } .repeat.changed { fill: none; }
.mark { fill: #ffad5c; }
}
"""


def measure(text: str, size: float = SIZE) -> float:
    return pixels(text, size)


def wrapped(text: str, width: float, size: float = SIZE) -> list[str]:
    return break_lines(text, width, lambda part: pixels(part, size))


@dataclass
class Laid:
    """Something that has its place around an axis: how far it goes to the left, to the right and upwards."""

    left: float
    right: float
    height: float
    paint: Callable[[Canvas, float, float], None]  # axis, bottom


class Canvas:
    """Elements with their places; what reads the memory, and where the memory is."""

    def __init__(self) -> None:
        self.elements: list[str] = []
        self.readers: list[tuple[float, float]] = []  # the left ends of what reads the memory
        self.tops: list[tuple[float, float]] = []  # of each column
        self.width = self.height = 0.0

    def rect(self, x: float, y: float, width: float, height: float, kind: str, radius: float = 5) -> None:
        place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
        self.elements.append(f'<rect class="{kind}" {place} rx="{_n(radius)}"/>')

    def text(self, x: float, y: float, text: str, kind: str, anchor: str = "middle") -> None:
        self.elements.append(
            f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def line(self, *points: tuple[float, float], head: bool = False) -> None:
        path = "M" + " L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.elements.append(f'<path class="line" d="{path}"{_HEAD if head else ""}/>')


_HEAD = ' marker-end="url(#head)"'


def draw(*figures: Figure) -> str:
    """The figures beside each other as an SVG document, for a file of its own or an `img`."""
    made = [_figure(figure) for figure in figures]
    height = max(canvas.height for canvas in made)
    width, body = 0.0, list[str]()
    for canvas in made:
        shift = f'<g transform="translate({_n(width)} 0)">' if width else "<g>"
        body += [shift, *canvas.elements, "</g>"]
        width += canvas.width
    title = " and ".join(figure.title for figure in figures)
    return _page(title, " ".join(figure.in_words() for figure in figures), "\n".join(body), width, height)


def _figure(figure: Figure) -> Canvas:
    columns = _columns(figure)
    inner = max(sum(each.left + each.right for each in columns) + BETWEEN * (len(columns) - 1), WIDTH)
    canvas = Canvas()
    y = float(MARGIN)
    for line in wrapped(figure.title, inner, 16):
        canvas.text(MARGIN, y + 12, line, "title", "start")
        y += 22
    bottom = y + max(each.height for each in columns) + GAP
    x = float(MARGIN)
    for laid in columns:
        laid.paint(canvas, x + laid.left, bottom)
        x += laid.left + laid.right + BETWEEN
    if figure.memory:
        _memory(canvas, columns[0])
    y = bottom + 22
    for note in _notes(figure):
        for line in wrapped(note, inner, SMALL):
            canvas.text(MARGIN, y, line, "note", "start")
            y += 16
    canvas.width, canvas.height = inner + 2 * MARGIN, y - 16 + MARGIN
    return canvas


def _columns(figure: Figure) -> list[Laid]:
    """The towers, then what explains them, as many above each other as are no higher than the towers."""
    alone = len(figure.towers) == 1
    found = [_titled("" if alone else tower.name, chain(tower.chain, WIDTH)) for tower in figure.towers]
    highest, piles = max(HIGH, *(each.height for each in found)), list[list[Laid]]()
    for tower in figure.beside:
        laid = _titled(tower.name, chain(tower.chain, WIDTH))
        if piles and sum(each.height + APART for each in piles[-1]) + laid.height <= highest:
            piles[-1].append(laid)
        else:
            piles.append([laid])
    return found + [_pile(each) for each in piles]


def _titled(name: str, laid: Laid) -> Laid:
    """A column below its name."""
    lines = wrapped(name, 2 * WIDTH, SMALL)
    half = max((measure(line, SMALL) for line in lines), default=0) / 2

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        laid.paint(canvas, axis, bottom)
        top = bottom - laid.height
        canvas.tops.append((axis, top))
        for row, line in enumerate(reversed(lines)):
            canvas.text(axis, top - 10 - 14 * row, line, "note")

    above = 10 + 14 * len(lines) if lines else 0
    return Laid(max(laid.left, half), max(laid.right, half), laid.height + above, paint)


def _pile(columns: list[Laid]) -> Laid:
    """Columns above each other."""

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        for each in columns:
            each.paint(canvas, axis, bottom)
            bottom -= each.height + APART

    height = sum(each.height for each in columns) + APART * (len(columns) - 1)
    return Laid(max(each.left for each in columns), max(each.right for each in columns), height, paint)


def _notes(figure: Figure) -> list[str]:
    legend = [f"Coloured, with a thick border: differs from {figure.against}."] if figure.marked else []
    return [*legend, *figure.notes]


def _memory(canvas: Canvas, encoder: Laid) -> None:
    """From the encoder's end to everything that reads it."""
    axis, top = canvas.tops[0]
    start, turn = axis + measure("memory") / 2 + 4, axis + encoder.right + BETWEEN / 2
    level = top + 12
    for x, y in canvas.readers:
        canvas.line((start, level), (turn, level), (turn, y), (x, y), head=True)


def _page(title: str, words: str, body: str, width: float, height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title desc" width="{_n(width)}" '
        f'height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(words)}</desc>\n<style>{STYLE}</style>\n'
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0.5 L8 4 L0 7.5 z"/></marker></defs>\n'
        f'<rect class="ground" width="{_n(width)}" height="{_n(height)}"/>\n{body}\n</svg>\n'
    )


def chain(parts: Chain, width: float, linked: bool = True) -> Laid:
    """Parts above each other on one axis."""
    laid = [place(part, width) for part in parts]
    if not laid:
        return Laid(0, 0, 0, lambda canvas, axis, bottom: None)

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        for index, each in enumerate(laid):
            if index and linked:
                canvas.line((axis, bottom), (axis, bottom - GAP), head=not isinstance(parts[index], Fork))
            bottom -= GAP * bool(index)
            each.paint(canvas, axis, bottom)
            bottom -= each.height

    height = sum(each.height for each in laid) + GAP * (len(laid) - 1)
    return Laid(max(each.left for each in laid), max(each.right for each in laid), height, paint)


def place(part: Part, width: float) -> Laid:
    if isinstance(part, Box):
        return _box(part, width)
    return _fork(part, width) if isinstance(part, Fork) else _frame(part, width)


def _box(box: Box, width: float) -> Laid:
    inner = width - 2 * PAD
    names, notes = wrapped(box.text, inner), wrapped(box.note, inner, SMALL)
    small = box.kind == "op"
    own = width
    if small:
        own = min(width, max(measure(line) for line in names) + 2 * PAD + 6)
    height = 12 + 16 * len(names) + 14 * len(notes) - (2 if small else 0)

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        top = bottom - height
        canvas.elements.append('<g class="box">' + (f"<title>{escape(_about(box))}</title>" if box.about else ""))
        canvas.rect(axis - own / 2, top, own, height, _kind(box.kind, box.changed), 12 if small else 5)
        for row, line in enumerate(names):
            canvas.text(axis, top + 18 + 16 * row - small, line, "op-name" if small or box.kind == "end" else "name")
        for row, line in enumerate(notes):
            canvas.text(axis, top + 17 + 16 * len(names) + 14 * row, line, "note")
        canvas.elements.append("</g>")
        if box.reads:
            canvas.readers.append((axis - own / 2, top + height / 2))

    return Laid(own / 2, own / 2, height, paint)


def _about(part: Box | Frame) -> str:
    return f"{part.text}: {part.about}" + (" Differs from the baseline." if part.changed else "")


def _kind(kind: str, changed: bool) -> str:
    return f"{kind} changed" if changed else kind


def _frame(frame: Frame, width: float) -> Laid:
    return _repeat(frame, width) if frame.repeat else _component(frame, width)


def _component(frame: Frame, width: float) -> Laid:
    """What is inside of a component, below its name."""
    body = chain(frame.body, width - 2 * PAD - 8, frame.linked)
    half = max(width / 2, body.left + PAD, body.right + PAD)
    names = wrapped(frame.text, 2 * half - 2 * PAD)
    notes = wrapped(frame.note, 2 * half - 2 * PAD, SMALL)
    above = 10 + 16 * len(names) + 14 * len(notes)
    height = above + body.height + 2 * GAP

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        top = bottom - height
        canvas.elements.append('<g class="box">' + (f"<title>{escape(_about(frame))}</title>" if frame.about else ""))
        canvas.rect(axis - half, top, 2 * half, height, _kind("frame", frame.changed))
        for row, line in enumerate(names):
            canvas.text(axis, top + 18 + 16 * row, line, "name")
        for row, line in enumerate(notes):
            canvas.text(axis, top + 17 + 16 * len(names) + 14 * row, line, "note")
        canvas.elements.append("</g>")
        body.paint(canvas, axis, bottom - GAP)
        if frame.linked:
            canvas.line((axis - half, top + above), (axis + half, top + above))
            canvas.line((axis, bottom), (axis, bottom - GAP), head=not _begins_with_fork(frame.body))
            canvas.line((axis, bottom - GAP - body.height), (axis, top + above))
        if frame.reads:
            canvas.readers.append((axis - half, top + height / 2))

    return Laid(half, half, height, paint)


def _begins_with_fork(body: Chain) -> bool:
    return bool(body) and isinstance(body[0], Fork)


def _repeat(frame: Frame, width: float) -> Laid:
    """Layers, with their number on the right."""
    body = chain(frame.body, width, frame.linked)
    names = wrapped(frame.text, SIDE, 16)
    notes = wrapped(frame.note, SIDE, SMALL)
    said = max([measure(line, 16) for line in names] + [measure(line, SMALL) for line in notes], default=0)
    left, right = body.left + PAD, body.right + PAD
    height = max(body.height + 2 * GAP, 20 * len(names) + 14 * len(notes) + 8)

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        top = bottom - height
        canvas.rect(axis - left, top, left + right, height, _kind("repeat", frame.changed), 9)
        middle = top + height / 2 - (20 * len(names) + 14 * len(notes)) / 2
        for row, line in enumerate(names):
            kind = "title mark" if frame.changed else "title"
            canvas.text(axis + right + 8, middle + 15 + 20 * row, line, kind, "start")
        for row, line in enumerate(notes):
            canvas.text(axis + right + 8, middle + 11 + 20 * len(names) + 14 * row, line, "note", "start")
        body.paint(canvas, axis, bottom - GAP)
        if frame.linked:
            canvas.line((axis, bottom), (axis, bottom - GAP), head=not _begins_with_fork(frame.body))
            canvas.line((axis, bottom - GAP - body.height), (axis, top))

    return Laid(left, right + said + 8, height, paint)


def _fork(fork: Fork, width: float) -> Laid:
    main = main_way(fork)
    return _side_by_side(fork, width) if main is None else _skip(fork, main, width)


def _skip(fork: Fork, main: int, width: float) -> Laid:
    """One way straight upwards, the other a line beside it."""
    body = chain(fork.ways[main], width)
    label = ", ".join(part.text for part in fork.ways[1 - main] if isinstance(part, Box))
    half = _sign_width(fork.sign) / 2
    lane = max(body.right, half) + LANE - 10
    stem, sign = 10, 20
    height = stem + GAP + body.height + GAP + sign

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        fork_y, top = bottom - stem, bottom - height
        middle = top + sign / 2
        canvas.line((axis, bottom), (axis, fork_y - GAP), head=not _begins_with_fork(fork.ways[main]))
        canvas.line((axis, fork_y), (axis + lane, fork_y), (axis + lane, middle), (axis + half, middle), head=True)
        body.paint(canvas, axis, fork_y - GAP)
        canvas.line((axis, top + sign + GAP), (axis, top + sign), head=True)
        if label:
            canvas.text(axis + lane + 5, (fork_y + middle) / 2 + 4, label, "way", "start")
        _sign(canvas, fork, axis, top, half)

    said = measure(label, SMALL) + 8 if label else 3
    return Laid(max(body.left, half), lane + said, height, paint)


def _side_by_side(fork: Fork, width: float) -> Laid:
    """Ways beside each other."""
    share = max(NARROW, (width - GAP * (len(fork.ways) - 1)) / len(fork.ways))
    laid = [chain(way, share) for way in fork.ways]
    spans = [max(each.left + each.right, 12) for each in laid]
    total = sum(spans) + GAP * (len(laid) - 1)
    tallest = max(each.height for each in laid)
    half, sign, stem = _sign_width(fork.sign) / 2, 20, 10
    height = stem + GAP + tallest + GAP + sign + 4

    def paint(canvas: Canvas, axis: float, bottom: float) -> None:
        low, top = bottom - stem, bottom - height
        high = top + sign + 8
        x, axes = axis - total / 2, []
        for each, span in zip(laid, spans, strict=True):
            axes.append(x + (each.left if each.height else span / 2))
            x += span + GAP
        canvas.line((axis, bottom), (axis, low))
        canvas.line((min(*axes, axis), low), (max(*axes, axis), low))
        for each, way, own in zip(laid, fork.ways, axes, strict=True):
            straight = bool(way) and not isinstance(way[0], Fork)
            canvas.line((own, low), (own, low - GAP if way else high), head=straight)
            each.paint(canvas, own, low - GAP)
            canvas.line((own, low - GAP - each.height), (own, high))
        canvas.line((min(*axes, axis), high), (max(*axes, axis), high))
        canvas.line((axis, high), (axis, top + sign), head=True)
        _sign(canvas, fork, axis, top, half)

    return Laid(max(total / 2, half), max(total / 2, half), height, paint)


def _sign_width(sign: str) -> float:
    return 20 if len(sign) == 1 else measure(sign) + 2 * PAD


def _sign(canvas: Canvas, fork: Fork, axis: float, top: float, half: float) -> None:
    canvas.elements.append('<g class="box">')
    canvas.rect(axis - half, top, 2 * half, 20, _kind("op", fork.changed), 10)
    canvas.text(axis, top + 14.5, fork.sign, "op-name")
    canvas.elements.append("</g>")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
