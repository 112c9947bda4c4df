"""An architecture as a picture: one layer of each tower, what joins it to the stream, what stands before and behind.

Drawn from the specification alone, as SVG. What differs from the baseline is coloured.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, HEIGHT, GAP, MARGIN = 230, 30, 16, 24  # of a box, between boxes, around everything, in pixels
PLAIN, CHANGED, LINE, SKIP = "#eef2f7", "#ffd9a8", "#334155", "#94a3b8"


class Drawing:
    """SVG elements, from the bottom upwards as data flows."""

    def __init__(self, x: int):
        self.x = x
        self.y = 0  # grows upwards; turned round at the end
        self.parts: list[tuple[str, dict[str, Any]]] = []

    def box(self, text: str, changed: bool = False) -> int:
        """A labelled box with an arrow into it; gives the height of its middle."""
        if self.parts:
            self.arrow()
        y = self.y
        self.parts.append(("box", {"y": y, "text": text, "fill": CHANGED if changed else PLAIN}))
        self.y += HEIGHT
        return y + HEIGHT // 2

    def arrow(self) -> None:
        self.parts.append(("arrow", {"y": self.y}))
        self.y += GAP

    def skip(self, start: int, stop: int, label: str) -> None:
        """A line beside the boxes from one height to another: the residual connection."""
        self.parts.append(("skip", {"from": start, "to": stop, "text": label}))

    def frame(self, start: int, text: str) -> None:
        self.parts.append(("frame", {"from": start - GAP // 2, "to": self.y + GAP // 2, "text": text}))
        self.y += GAP // 2

    def svg(self, top: int) -> str:
        """The elements, `top` the height of the whole picture."""
        return "\n".join(getattr(self, f"_{kind}")(top, part) for kind, part in self.parts)

    def _box(self, top: int, part: Mapping[str, Any]) -> str:
        y = top - part["y"] - HEIGHT
        text = part["text"] if len(part["text"]) <= 38 else part["text"][:36] + "…"
        return (
            f'<g><title>{escape(part["text"])}</title><rect x="{self.x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" '
            f'rx="5" fill="{part["fill"]}" stroke="{LINE}"/><text x="{self.x + WIDTH // 2}" y="{y + 20}" '
            f'text-anchor="middle">{escape(text)}</text></g>'
        )

    def _arrow(self, top: int, part: Mapping[str, Any]) -> str:
        x, y = self.x + WIDTH // 2, top - part["y"]
        return f'<path d="M{x} {y} V{y - GAP + 2}" stroke="{LINE}" fill="none" marker-end="url(#head)"/>'

    def _skip(self, top: int, part: Mapping[str, Any]) -> str:
        x, low, high = self.x + WIDTH // 2, top - part["from"], top - part["to"]
        right = self.x + WIDTH + 14
        return (
            f'<path d="M{x} {low} H{right} V{high} H{self.x + WIDTH}" stroke="{SKIP}" fill="none" '
            f'marker-end="url(#head)"/><text x="{right + 4}" y="{(low + high) // 2}" class="note">'
            f"{escape(part['text'])}</text>"
        )

    def _frame(self, top: int, part: Mapping[str, Any]) -> str:
        y = top - part["to"]
        return (
            f'<rect x="{self.x - 12}" y="{y}" width="{WIDTH + 100}" height="{part["to"] - part["from"]}" rx="8" '
            f'fill="none" stroke="{SKIP}" stroke-dasharray="4 3"/><text x="{self.x + WIDTH + 84}" y="{y + 16}" '
            f'text-anchor="end">{escape(part["text"])}</text>'
        )


def draw(name: str, arch: Mapping[str, Any], differs_in: list[str]) -> str:
    """The SVG of an architecture in its plain-tree form, with its slots that differ from the baseline."""
    if arch["model"] is not None:
        whole = Drawing(MARGIN)
        whole.box(f"tokens → {words(arch['model'])} → predictions", changed=True)
        return _page(name, [whole])
    sides = ("encoder", "decoder") if arch["encoder"] else ("",)
    places = (MARGIN + index * (WIDTH + 130) for index in range(len(sides)))
    return _page(name, [_tower(x, arch, set(differs_in), side) for x, side in zip(places, sides, strict=True)])


def _tower(x: int, arch: Mapping[str, Any], differs: set[str], side: str) -> Drawing:
    drawing = Drawing(x)
    drawing.box({"encoder": "source", "decoder": "tokens so far"}.get(side, "input"))
    drawing.box(words(arch["embedding"]), "embedding" in differs)
    if arch["position"]["name"] != "none":
        drawing.box(f"position: {words(arch['position'])}", "position" in differs)
    order, depth = arch["order"], arch["depth"]
    if side == "encoder":
        order, depth = arch["encoder_order"], arch["encoder_depth"]
    elif side == "decoder":
        order = arch["decoder_order"]
    start = drawing.y + GAP
    for letter in order:
        _sublayer(drawing, letter, arch, differs)
    many = f"× {depth}" + ("" if arch["sharing"]["name"] == "none" else f", shared: {words(arch['sharing'])}")
    drawing.frame(start, many)
    if arch["stack"]["name"] != "plain":
        drawing.box(f"stack: {words(arch['stack'])}", "stack" in differs)
    if arch["final_norm"]:
        drawing.box(f"final {words(arch['norm'])}", "norm" in differs)
    if side == "encoder":
        drawing.box("memory, to the cross-attention →")
    else:
        drawing.box(words(arch["head"]), "head" in differs)
    return drawing


def _sublayer(drawing: Drawing, letter: str, arch: Mapping[str, Any], differs: set[str]) -> None:
    """One sublayer with its norms where its residual puts them."""
    residual, norm = arch["residual"]["name"], words(arch["norm"])
    normed = arch["norm"]["name"] != "none"
    changed = "norm" in differs or "residual" in differs
    below = drawing.y + GAP // 2  # on the arrow into what comes first
    if normed and residual in ("pre", "sandwich", "rezero", "none"):
        drawing.box(norm, changed)
    part = arch["sublayers"][letter]
    swap = arch["swap"]
    text = f"{letter}: {words(part)}"
    if swap is not None and swap["sublayer"] == letter:
        where = f"every {swap['every']}" if swap["every"] else f"layer {swap['layer']}"
        text = f"{letter}: {part['name']}; {swap['by']['name']} in {where}"
    drawing.box(text, bool({arch["slots"][letter], "pattern"} & differs))
    if normed and residual == "sandwich":
        drawing.box(norm, changed)
    if residual == "none":
        return
    join = {"post": f"{norm}(x + f)", "deepnorm": f"{norm}(αx + f)", "rezero": "x + a f", "scaled": "(x + f) √½"}
    joined = drawing.box(join.get(residual, "+"), changed)
    drawing.skip(below, joined, "x" if residual in ("pre", "post") else residual)


def words(part: Mapping[str, Any]) -> str:
    """A component's name with its options."""
    given = {key: value for key, value in part.items() if key != "name" and value is not None}
    options = ", ".join(f"{key}={str(value).lower()}" for key, value in given.items())
    return f"{part['name']}({options})" if options else str(part["name"])


def _page(name: str, drawings: list[Drawing]) -> str:
    top = max(drawing.y for drawing in drawings) + 2 * MARGIN
    width = max(drawing.x for drawing in drawings) + WIDTH + 110
    body = "\n".join(drawing.svg(top - MARGIN // 2) for drawing in drawings)
    return f'''<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}">
<title>{escape(name)}</title>
<style>text {{ font: 12px sans-serif; fill: {LINE}; }} .note {{ font-size: 10px; fill: {SKIP}; }}</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="{LINE}"/></marker></defs>
<rect width="{width}" height="{top}" fill="white"/>
{body}
</svg>
'''
