"""How a module computes its output, as parts of a drawing: written down while it runs, on the meta device.

Nothing is known here of any component by its name. A forward pass whose ways cross, or that has too many steps to be
read, has no flow: the module is then drawn as one box.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from ablate.context import Context
from ablate.draw.parts import Box, Chain, Fork

MOST = 24  # parts of a flow that is still read at a glance
# Operations that change the shape, or nothing that a drawing shows
QUIET = frozenset(
    "dropout view reshape transpose flatten unflatten permute contiguous to float double type_as getitem detach "
    "unsqueeze squeeze expand clone pad movedim chunk split unbind bool repeat_interleave view_as get".split()
)
SIGNS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "truediv": "÷"}
SAID = {"silu": "swish", "scaled_dot_product_attention": "attention", "mm": "matmul", "bmm": "matmul"}
DIMENSIONS = re.compile(r"_[A-Z][A-Z0-9]*$")  # that end a tensor's name
REFLECTED, IN_PLACE = {"r" + name for name in SIGNS}, {"i" + name for name in SIGNS}
SAID |= {"maximum": "max", "minimum": "min"}

Show = Callable[[nn.Module, str], Chain]


class Sublayer(nn.Module):
    """Stands for the sublayer that a residual joins to the stream."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0


class Recorder(TorchFunctionMode):
    """Writes down what one call of `module` does to its first argument: its submodules and others that it calls, each
    as one step, and the operations between them."""

    def __init__(self, module: nn.Module, first: Tensor):
        super().__init__()
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.names = {id(each): name for name, each in (*module.named_parameters(), *module.named_buffers())}
        self.nodes = {id(first): self.graph.placeholder("x")}
        self.kept: list[Any] = [first]  # else another tensor could have the identity of one that is gone
        self.inside = 0  # of a submodule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            self.enter(lambda given: self.graph.call_function(func, given, {}), args, kwargs, result)
        return result

    def enter(self, node_of: Callable[[tuple[Any, ...]], fx.Node], args: Any, kwargs: Any, result: Any) -> None:
        """A step whose result is a tensor, or several."""
        results = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, list | tuple) else []
        if not any(isinstance(each, Tensor) for each in results):
            return
        flat: list[Any] = []
        _leaves((*args, *(kwargs or {}).values()), flat)
        node = node_of(tuple(self.node(each) if isinstance(each, Tensor) else each for each in flat))
        self.kept.append(results)
        for each in results:
            self.nodes[id(each)] = node

    def node(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self.nodes:
            self.nodes[id(tensor)] = self.graph.create_node("get_attr", self.names.get(id(tensor), "another input"))
            self.kept.append(tensor)
        return self.nodes[id(tensor)]

    def watch(self, modules: Mapping[str, nn.Module]) -> list[Any]:
        """Hooks on the modules that are taken as one step."""
        found = []
        for name, module in modules.items():
            found.append(module.register_forward_pre_hook(self.begin))
            found.append(module.register_forward_hook(lambda *of, name=name: self.end(name, *of)))
        return found

    def begin(self, module: nn.Module, args: Any) -> None:
        self.inside += 1

    def end(self, name: str, module: nn.Module, args: Any, result: Any) -> None:
        self.inside -= 1
        if not self.inside and not any(result is each for each in args):  # it lets its input through
            self.modules[name] = module
            self.enter(lambda given: self.graph.create_node("call_module", name, given), args, None, result)

    def hooked(self, position: Any) -> Callable[[], None]:
        """Takes what a position does to queries and keys as one step, and what it adds to scores and values as given.
        Returns what undoes that."""
        name = position.component.split("/")[-1]
        own = {hook: getattr(position, hook) for hook in ("rotate", "bias", "value")}

        def step(hook: str, *args: Any) -> Any:
            self.inside += 1
            try:
                result = own[hook](*args)
            finally:
                self.inside -= 1
            if not self.inside and all(result[k] is not args[k] for k in range(2) if hook == "rotate"):
                tensors = args[:2] if hook == "rotate" else ()
                self.enter(lambda given: self.graph.call_method(name, given), tensors, None, result)
            return result

        for hook in own:
            setattr(position, hook, partial(step, hook))

        def undo() -> None:
            for hook, before in own.items():
                setattr(position, hook, before)

        return undo


def _leaves(value: Any, found: list[Any]) -> None:
    if isinstance(value, list | tuple):
        for each in value:
            _leaves(each, found)
    elif isinstance(value, Tensor | int | float):
        found.append(value)


def flow(module: nn.Module, show: Show, *args: Any, call: Callable[..., Any] | None = None) -> Chain | None:
    """The steps of `module(*args)` from the first argument to the result, each submodule as `show` draws it.

    None where they are not ways that fork and join. `call` is another method of it."""
    others = {f"given{index}": each for index, each in enumerate(args) if isinstance(each, nn.Module)}
    steps = {name: each for name, each in module.named_modules() if each is not module} | others
    recorder = Recorder(module, args[0])
    handles = recorder.watch(steps)
    undo = [recorder.hooked(each.position) for each in args if isinstance(each, Context)]
    try:
        with torch.device("meta"), torch.no_grad(), recorder:
            result = (call or module)(*args)
        if id(result) not in recorder.nodes:
            return None
        recorder.graph.output(recorder.nodes[id(result)])
        chain = Ways(recorder.graph, recorder.modules, show).all()
        return chain if chain is not None and size(chain) <= MOST else None
    except Exception:  # called alone, a module may miss what the rest of its model provides
        return None
    finally:
        for handle in handles:
            handle.remove()
        for each in undo:
            each()


def size(chain: Chain) -> int:
    """How many parts are drawn, those inside of frames apart."""
    return sum(1 + sum(map(size, part.ways)) if isinstance(part, Fork) else 1 for part in chain)


class Ways:
    """A graph of operations as ways that fork and join again."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module], show: Show):
        self.modules, self.show = modules, show
        self.nodes = list(graph.nodes)
        self.order = {node: index for index, node in enumerate(self.nodes)}
        self.source = next(node for node in self.nodes if node.op == "placeholder")
        self.live: set[fx.Node] = set()  # what depends on the input
        self.above: dict[fx.Node, fx.Node] = {}  # the nearest node that all ways from the input pass before this one
        self.drawn: set[fx.Node] = set()
        for node in self.nodes:
            if node is self.source:
                self.live.add(node)
            elif inputs := self.inputs(node):
                self.live.add(node)
                self.above[node] = self.common(inputs)

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that it reads and that depend on the input, in its order, each as often as it is read."""
        return [each for each in node.args if isinstance(each, fx.Node) and each in self.live]

    def common(self, nodes: list[fx.Node]) -> fx.Node:
        """The nearest node through which all of these have come."""
        first, *rest = nodes
        for other in rest:
            while first is not other:
                if self.order[first] > self.order[other]:
                    first = self.above[first]
                else:
                    other = self.above[other]
        return first

    def all(self) -> Chain | None:
        """From the input to the output. None where ways cross, or the output is not one tensor."""
        (output,) = (node for node in self.nodes if node.op == "output")
        result = output.args[0]
        return self.way(result, self.source) if isinstance(result, fx.Node) and result in self.live else None

    def way(self, node: fx.Node, start: fx.Node) -> Chain | None:
        """The parts after `start` up to and with `node`."""
        parts: list[Chain] = []
        while node is not start:
            if node in self.drawn:
                return None
            self.drawn.add(node)
            reads = list(dict.fromkeys(self.inputs(node)))
            if len(reads) == 1:
                parts.append(self.step(node))
                node = reads[0]
                continue
            meet = self.common(reads)
            ways = [self.way(each, meet) for each in reads]
            if any(way is None for way in ways):
                return None
            name = _name(node)
            sign = SIGNS.get(name, SAID.get(name, name))
            made = tuple(way for way in ways if way is not None)
            parts.append((Fork(made, sign) if any(made) else Box(sign, kind="op"),))
            node = meet
        return tuple(part for chain in reversed(parts) for part in chain)

    def step(self, node: fx.Node) -> Chain:
        """What one node adds to its way: nothing where it changes the shape alone."""
        if node.op == "call_module":
            name = str(node.target)
            return self.show(self.modules[name], name.split(".")[-1])
        name = _name(node)
        if name in QUIET:
            return ()
        sides = [each for each in node.args if not (isinstance(each, fx.Node) and each in self.live)]
        if name in SIGNS and len(node.args) == 2:
            if not sides:  # x + x, x * x
                return (Box("square" if SIGNS[name] == "×" else "double", kind="op"),)
            return (Box(f"{SIGNS[name]} {self.side(sides[0])}", kind="op"),)
        if name == "matmul" and sides:
            return (Box(f"matrix product with {self.side(sides[0])}", kind="op"),)
        return (Box(SAID.get(name, name.replace("_", " ")), kind="op"),)

    def side(self, value: Any) -> str:
        """The name of what does not depend on the input: a parameter, a number, what another module made."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return f"{value:.3g}"
        while isinstance(value, fx.Node):
            if value.op in ("get_attr", "call_module"):
                return DIMENSIONS.sub("", str(value.target).split(".")[-1]).replace("_", " ")
            below = list(value.all_input_nodes)
            if not below:
                return _name(value).replace("_", " ")
            value = below[0]
        return "constant"


def _name(node: fx.Node) -> str:
    """What an operation is called: `add` of `__radd__` too."""
    if isinstance(node.target, str):
        return node.target
    name = str(getattr(node.target, "__name__", node.target))
    if name.startswith("__"):
        name = name.strip("_").removeprefix("r" if name.strip("_") in REFLECTED else "")
    return name.strip("_").removeprefix("i" if name.strip("_") in IN_PLACE else "")
