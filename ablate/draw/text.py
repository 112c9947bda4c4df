"""A figure in the terminal: boxes of characters, never wider than asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ablate.draw.letters import columns as width_of
from ablate.draw.letters import pieces
from ablate.draw.letters import wrapped as break_lines
from ablate.draw.parts import Box, Chain, Figure, Fork, Frame, Part, Tower, every, main_way

NARROWEST = 40  # of a terminal that is drawn for
ENOUGH = 34  # for a column
WIDEST = 46  # of a column: longer lines are harder to read
APART = 3  # columns beside each other

# of a border: corners, horizontal, vertical, where a line leaves upwards and downwards
PLAIN, THICK, DASHED = "┌┐└┘─│┴┬", "┏┓┗┛━┃┷┯", "┌┐└┘╌╎┴┬"
ASCII = str.maketrans(
    "┌┐└┘─│┴┬┏┓┗┛━┃┷┯╌╎├┼◂×·→−÷…",
    "++++-|++########.:++<x->-/~",
)


@dataclass
class Block:
    """Lines of one width, and the column of the axis that goes through it."""

    lines: list[str]
    axis: int

    @property
    def width(self) -> int:
        return len(self.lines[0]) if self.lines else 0


def draw(figures: Sequence[Figure], width: int, unicode: bool = True) -> str:
    """The figures as lines of at most `width` characters, beside each other where there is room; in ASCII where
    `unicode` is false."""
    width = max(width, NARROWEST)
    share = (width - APART * (len(figures) - 1)) // len(figures)
    beside = len(figures) > 1 and share >= ENOUGH * max(len(figure.towers) for figure in figures)
    made = [_figure(figure, share if beside else width, len(figures) > 1) for figure in figures]
    if beside:
        made = [_beside([_widened(Block(lines, 0)) for lines in made])]
    text = "\n\n\n".join("\n".join(line.rstrip() for line in lines) for lines in made)
    return text if unicode else text.translate(ASCII).encode("ascii", "replace").decode()


def _figure(figure: Figure, width: int, titled: bool) -> list[str]:
    """Towers beside each other, or the first lowest where there is no room; what explains them; notes."""
    towers = [_column(tower, share, len(figure.towers) > 1) for tower, share in _shared(figure.towers, width)]
    rows = list(reversed(_rows(towers, width)))
    rows += _rows([_column(tower, share, True) for tower, share in _shared(figure.beside, width)], width)
    legend = [f"* thick border: differs from {figure.against}"] if figure.marked else []
    rows.append([line for note in (*legend, *figure.notes) for line in wrapped(note, width)])
    head = [*wrapped(figure.title, width), ""] if titled else []
    found = [line for lines in rows if lines for line in ["", *lines]]
    return [*head, *found[1:]]


def _shared(towers: Sequence[Tower], width: int) -> list[tuple[Tower, int]]:
    """Each with the width that it may take."""
    fits = max(1, min(len(towers), (width + APART) // (ENOUGH + APART)))
    return [(tower, min(WIDEST, (width - APART * (fits - 1)) // fits)) for tower in towers]


def _rows(blocks: list[Block], width: int) -> list[list[str]]:
    """As many beside each other as there is room for."""
    rows: list[list[Block]] = []
    for block in blocks:
        if rows and sum(each.width + APART for each in rows[-1]) + block.width <= width:
            rows[-1].append(block)
        else:
            rows.append([block])
    return [_beside(row) for row in rows]


def wrapped(text: str, width: int) -> list[str]:
    return break_lines(text, width, width_of)


def _column(tower: Tower, width: int, named: bool) -> Block:
    block = chain(tower.chain, width)
    lines = [_pad(line, block.width) for line in wrapped(tower.name, width)] if named else []
    return _widened(
        Block(
            [
                *(_centred(line.strip(), max(block.width, width_of(line.strip())), block.axis) for line in lines),
                *block.lines,
            ],
            block.axis,
        )
    )


def _centred(text: str, width: int, axis: int) -> str:
    """The text around the axis, as far as there is room."""
    start = max(0, min(axis - width_of(text) // 2, width - width_of(text)))
    return _pad(" " * start + text, width)


def _pad(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def _widened(block: Block) -> Block:
    """With all lines of one length."""
    width = max(map(width_of, block.lines))
    return Block([_pad(line, width) for line in block.lines], block.axis)


def _beside(blocks: list[Block]) -> list[str]:
    """Blocks beside each other, on one ground."""
    if not blocks:
        return []
    height = max(len(block.lines) for block in blocks)
    filled = [[" " * block.width] * (height - len(block.lines)) + block.lines for block in blocks]
    return [(" " * APART).join(row) for row in zip(*filled, strict=True)]


def chain(parts: Chain, width: int, linked: bool = True) -> Block:
    """Parts above each other on one axis."""
    return _stacked([place(part, width) for part in reversed(parts)])


def _stacked(blocks: list[Block]) -> Block:
    blocks = [block for block in blocks if block.lines]
    if not blocks:
        return Block([], 0)
    axis = max(block.axis for block in blocks)
    lines = [" " * (axis - block.axis) + line for block in blocks for line in block.lines]
    return _widened(Block(lines, axis))


def place(part: Part, width: int) -> Block:
    if isinstance(part, Box):
        return _box(part, width)
    return _fork(part, width) if isinstance(part, Fork) else _frame(part, width)


def _box(box: Box, width: int) -> Block:
    if box.kind == "end":
        lines = wrapped(box.text, width)
        return _widened(
            Block(
                [_centred(line, max(map(width_of, lines)), max(map(width_of, lines)) // 2) for line in lines],
                max(map(width_of, lines)) // 2,
            )
        )
    mark = "* " if box.changed else ""
    texts = wrapped(mark + box.text, width - 4) + wrapped(box.note, width - 4)
    if box.kind == "op":
        inner = max(map(width_of, texts)) + 2
        lines = ["(" + _centred(text, inner, inner // 2) + ")" for text in texts]
        return _widened(Block(lines, len(lines[0]) // 2))
    return _bordered([_centred(text, width - 4, (width - 4) // 2) for text in texts], width, width // 2, box.changed)


def _bordered(
    inside: list[str], width: int, axis: int, changed: bool, dashed: bool = False, linked: bool = True
) -> Block:
    """Lines of `width` - 4 characters in a border through which the axis goes."""
    a, b, c, d, across, down, up, low = list(THICK if changed else DASHED if dashed else PLAIN)
    bar = across * (width - 2)
    top = a + bar[: axis - 1] + (up if linked else across) + bar[axis:] + b
    bottom = c + bar[: axis - 1] + (low if linked else across) + bar[axis:] + d
    return Block([top, *(f"{down} {line} {down}" for line in inside), bottom], axis)


def _frame(frame: Frame, width: int) -> Block:
    body = chain(frame.body, width - 4, frame.linked)
    if body.width > width - 4 and not frame.repeat:  # no room for what is inside
        return _box(Box(frame.text, frame.note, changed=frame.changed), width)
    inner = max(width - 4, body.width) if not frame.repeat else max(body.width, 1)
    axis = body.axis if frame.repeat else max(body.axis, min(inner // 2, inner - (body.width - body.axis)))
    mark = "* " if frame.changed else ""
    said = frame.text + (f", {frame.note}" if frame.note else "") if frame.repeat else frame.text
    texts = wrapped(mark + said, inner) + ([] if frame.repeat else wrapped(frame.note, inner))
    if frame.repeat:
        header = [_crossed(_pad(text, inner), axis) for text in texts]
    else:
        header = [_centred(text, inner, inner // 2) for text in texts]
        rule = "─" * inner
        header += [rule[:axis] + "┬" + rule[axis + 1 :] if frame.linked else rule]
    shift = axis - body.axis
    inside = [_pad(" " * shift + line, inner) for line in body.lines]
    return _bordered(header + inside, inner + 4, axis + 2, frame.changed, frame.repeat, frame.linked or frame.repeat)


def _crossed(line: str, axis: int) -> str:
    """A line of text with the stream through it, where there is no text."""
    free = axis >= len(line.rstrip()) + 1
    return line[:axis] + "│" + line[axis + 1 :] if free else line


def _fork(fork: Fork, width: int) -> Block:
    main = main_way(fork)
    return _side_by_side(fork, width) if main is None else _skip(fork, main, width)


def _sign(fork: Fork) -> str:
    return f"({'*' * fork.changed}{fork.sign})"


def _skip(fork: Fork, main: int, width: int) -> Block:
    """One way straight upwards, the other a line beside it."""
    body = chain(fork.ways[main], width - 4)
    label = ", ".join(part.text for part in fork.ways[1 - main] if isinstance(part, Box))
    sign = _sign(fork)
    left = len(sign) // 2
    axis = max(body.axis, left)
    body = Block([" " * (axis - body.axis) + line for line in body.lines], axis)
    lane = max(body.width + 1, axis + len(sign) + 2)
    top = " " * (axis - left) + sign
    top += "◂" + "─" * (lane - len(top) - 1) + "┐"
    lines = [top]
    for line in body.lines or [" " * axis + "│"]:
        lines.append(_pad(line, lane) + "│")
    lines.append(" " * axis + "├" + "─" * (lane - axis - 1) + "┘")
    if label:  # below the line that it is said of
        words = f"({label})"
        lines[-1] = " " * axis + "├─" + words + "─" * max(0, lane - axis - 2 - len(words)) + "┘"
    return _widened(Block(lines, axis))


def _side_by_side(fork: Fork, width: int) -> Block:
    """Ways beside each other; where there is no room, in one box if they are alike, else above each other."""
    count = len(fork.ways)
    share = (width - (count - 1)) // count
    if any(_longest(way) > share - 4 for way in fork.ways):
        return _merged(fork, width) or _listed(fork, width)
    blocks = [chain(way, share) for way in fork.ways]
    blocks = [block if block.lines else Block(["│"], 0) for block in blocks]
    if sum(block.width for block in blocks) + count - 1 > width:
        return _listed(fork, width)
    height = max(len(block.lines) for block in blocks)
    filled = []
    for block in blocks:
        rest = _pad(" " * block.axis + "│", block.width)
        filled.append([rest] * (height - len(block.lines)) + block.lines)
    axes, at = [], 0
    for block in blocks:
        axes.append(at + block.axis)
        at += block.width + 1
    total = at - 1
    axis = (axes[0] + axes[-1]) // 2
    high = _bar(axes, total, axis, "┌┐┬", "┴", "┼")
    low = _bar(axes, total, axis, "└┘┴", "┬", "┼")
    sign = _sign(fork)
    lines = [
        _pad(" " * max(0, axis - len(sign) // 2) + sign, total),
        high,
        *(" ".join(row) for row in zip(*filled, strict=True)),
        low,
    ]
    return _widened(Block(lines, axis))


def _longest(way: Chain) -> int:
    """Of the words that cannot be broken."""
    texts = [f"{part.text} {part.note}" for part in every(way) if isinstance(part, Box)]
    words = [width_of(piece.strip()) for text in texts for piece in pieces(text)]
    return max(words, default=0) + 4 * any(isinstance(part, Frame) for part in way)


def _merged(fork: Fork, width: int) -> Block | None:
    """One box for ways that are one box each, of the same shape."""
    boxes = [way[0] for way in fork.ways if len(way) == 1 and isinstance(way[0], Box) and way[0].kind == "part"]
    if len(boxes) != len(fork.ways) or len({box.note for box in boxes}) > 1:
        return None
    note = f"{boxes[0].note} each" if boxes[0].note else ""
    merged = replace(boxes[0], text=", ".join(box.text for box in boxes), note=note)
    return _stacked([_box(Box(fork.sign, kind="op"), width), _box(merged, width)])


def _bar(axes: list[int], total: int, axis: int, ends: str, stem: str, both: str) -> str:
    """A line over or under several ways, with the stream at its middle."""
    bar = [" "] * total
    for k in range(axes[0], axes[-1] + 1):
        bar[k] = "─"
    for k in axes[1:-1]:
        bar[k] = ends[2]
    bar[axes[0]], bar[axes[-1]] = ends[0], ends[1]
    bar[axis] = both if axis in axes else stem
    return "".join(bar)


def _listed(fork: Fork, width: int) -> Block:
    """Ways above each other in a frame: there is no room beside each other."""
    inner = width - 4
    lines: list[str] = []
    for index, way in enumerate(fork.ways):
        block = chain(way, inner)
        lines += [
            _pad(f"way {index + 1}:", inner),
            *(_pad(line, inner) for line in block.lines or ["the stream itself"]),
        ]
    frame = _bordered([_pad(line, inner) for line in lines], width, width // 2, False, dashed=True)
    sign = _sign(fork)
    return _widened(Block([_centred(sign, width, width // 2), *frame.lines], width // 2))
