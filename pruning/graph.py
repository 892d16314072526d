"""Which channels live and die together: torch-pruning's dependency graph, followed channel by channel.

torch-pruning traces the network into a graph of modules and operations. Here every single channel is followed along
its edges, which settles concatenations, splits and sums alike: channels that are connected must be removed together,
and those with the same connections form a `Segment`.

Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning.dependency.node import Node
from torch_pruning.ops import OPTYPE

from pruning.errors import PruneError

Forward = Callable[[nn.Module, Tensor], Any]
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
# Operations that leave every channel in its place; what is not known is never pruned through.
BY_CHANNEL = frozenset((
    "Add", "Sub", "Mul", "Div", "Silu", "Relu", "LeakyRelu", "Hardtanh", "Hardswish", "Hardsigmoid", "Sigmoid", "Tanh",
    "Mish", "Gelu", "Elu", "Softplus", "MaxPool2DWithIndices", "AvgPool2D", "UpsampleNearest2D", "UpsampleBilinear2D",
    "ConstantPadNd", "Clone", "ToCopy",
))  # fmt: skip
# Allowed along the first dimension alone, as in a sum of stacked maps.
FROM_THE_FIRST: dict[str, Callable[[Any], Any]] = {
    "Stack": lambda function: (function._saved_dim,),
    "Sum": lambda function: function._saved_dim if hasattr(function, "_saved_dim") else (),
}


@dataclass(frozen=True)
class Port:
    """One side of a module, where channels can be removed.

    Attributes:
        name: path of the module, or of a bare parameter.
        side: "out", "in", or "both" where these are the same channels (BatchNorm, depth-wise convolutions).
        module: the module or parameter.
        width: number of channels.
    """

    name: str
    side: str
    module: nn.Module | nn.Parameter
    width: int

    def __hash__(self) -> int:
        return hash((self.name, self.side))


@dataclass
class Segment:
    """Channels with the same connections.

    Attributes:
        places: for each port the channels that belong to each of the n channels of the segment, (n, count); a pooling
            pyramid, for example, shows every channel to the next convolution `count` times.
        reason: why these channels must stay; empty where they may go.
    """

    places: dict[Port, Tensor]
    reason: str = ""

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(next(iter(self.places.values())))

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return next(port.name for port in self.places if port.side != "in")

    def modules(self) -> list[nn.Module | nn.Parameter]:
        """What has to do with these channels."""
        return [port.module for port in self.places]


@dataclass
class Group:
    """Segments that must keep equally many channels each, such as the two halves of a map that is cut in the middle."""

    segments: list[Segment]

    @property
    def size(self) -> int:
        """Channels of each segment."""
        return self.segments[0].size

    @property
    def name(self) -> str:
        """The first layer that makes these channels."""
        return self.segments[0].name

    @property
    def reason(self) -> str:
        """Why these channels must stay; empty where they may go."""
        return next((segment.reason for segment in self.segments if segment.reason), "")


def trace_groups(model: nn.Module, image: Tensor, forward: Forward) -> list[Group]:
    """Finds what can be pruned together.

    Args:
        model: a network of convolutions and BatchNorm.
        image: (1, C, H, W) an input that it takes.
        forward: runs the model so that everything that shall be pruned takes part; returns tensors in lists.

    Returns:
        The groups in the order of the network; those that must stay have a reason.

    Raises:
        PruneError: the network cannot be traced.
    """
    with _gradients(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = tp.DependencyGraph().build_dependency(
                model,
                image,
                forward_fn=_each_once(forward),
                unwrapped_parameters=_bare_parameters(model),
                verbose=False,
            )
        except (RuntimeError, AssertionError, AttributeError, KeyError) as error:
            raise PruneError(f"this network cannot be traced: {str(error).splitlines()[0]}") from error
    return Channels(model, list(graph.module2node.values())).groups()


@contextmanager
def _gradients(model: nn.Module) -> Iterator[None]:
    """Lets every parameter take part in the trace, and leaves modes and gradients as they were."""
    needed = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        for parameter, _ in needed:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in needed:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _bare_parameters(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Parameters outside PyTorch's own layers with a number for each channel, (1, C, 1, 1), and that dimension."""
    return [
        (parameter, 1)
        for module in model.modules()
        if not type(module).__module__.startswith("torch.nn")
        for parameter in module.parameters(recurse=False)
        if _is_by_channel(parameter)
    ]


def _is_by_channel(parameter: Tensor) -> bool:
    """Whether a parameter is (1, C, 1, 1)."""
    return parameter.dim() == 4 and parameter.shape[1] == parameter.numel()


def _each_once(forward: Forward) -> Forward:
    """`forward` that refuses a network in which a layer is used twice: the trace would follow one use alone."""

    def counted(model: nn.Module, image: Tensor) -> Any:
        used: set[nn.Module] = set()

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if module in used:
                raise PruneError(
                    f"a {type(module).__name__} of this network is used more than once; it cannot be pruned"
                )
            used.add(module)

        layers = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.BatchNorm2d))]
        hooks = [layer.register_forward_hook(note) for layer in layers]
        try:
            return forward(model, image)
        finally:
            for hook in hooks:
                hook.remove()

    return counted


class Channels:
    """Union-find over every channel of every node of a traced network.

    A convolution has input and output channels of its own; every other node has one set of them. A split's are those
    before it is split.
    """

    def __init__(self, model: nn.Module, nodes: Sequence[Node]) -> None:
        self.names: dict[Any, str] = {module: name for name, module in model.named_modules()}
        self.names |= {parameter: name for name, parameter in model.named_parameters()}
        self.rank = {name: number for number, name in enumerate(self.names.values())}
        self.nodes = nodes
        self.node_of = {node.grad_fn: node for node in nodes}
        self.parent: list[int] = []
        self.first: dict[tuple[Node, str], int] = {}  # id of a side's first channel
        self.widths: dict[tuple[Node, str], int] = {}
        self.reasons: dict[int, str] = {}  # of single channels
        self.parts: dict[Node, tuple[int, int]] = {}  # a split's size of a part, and number of parts
        for node in self._inputs_first():
            self._add(node)

    def _inputs_first(self) -> list[Node]:
        """The nodes in an order in which each comes after all that it reads."""
        order: list[Node] = []
        placed: set[Node] = set()
        stack = [(node, False) for node in reversed(self.nodes)]
        while stack:
            node, ready = stack.pop()
            if node in placed:
                continue
            if ready:
                placed.add(node)
                order.append(node)
            else:
                stack.append((node, True))
                stack += [(source, False) for source, _ in self._sources(node) if source not in placed]
        return order

    def _sources(self, node: Node) -> list[tuple[Node, int]]:
        """What a node reads, in order, and which output of each."""
        found = ((self.node_of.get(function), part) for function, part in getattr(node.grad_fn, "next_functions", ()))
        return [(source, part) for source, part in found if source is not None]

    def _add(self, node: Node) -> None:
        """Gives a node its channels and connects them with those of its sources."""
        sources = [self._output(source, part) for source, part in self._sources(node)]  # (first id, width) or None
        module = node.module
        if isinstance(module, CONVOLUTIONS):
            self._enter(node, "in", module.in_channels)
            self._enter(node, "out", module.out_channels)
            self._convolution(node, module)
        elif isinstance(module, nn.BatchNorm2d):
            self._enter(node, "both", module.num_features)
        elif isinstance(module, nn.Parameter):
            if _is_by_channel(module):
                self._enter(node, "both", module.shape[1])
            return
        elif not _is_followed(node) or None in sources or not sources:
            for source in sources:
                self._keep(
                    source, "the network's output" if node.type == OPTYPE.OUTPUT else "an operation not followed"
                )
            return
        elif node.type == OPTYPE.CONCAT:
            self._enter(node, "both", sum(source[1] for source in sources if source))
        else:
            self._enter(node, "both", max(source[1] for source in sources if source))
        if node.type == OPTYPE.SPLIT:
            size = int(node.grad_fn._saved_split_size)
            self.parts[node] = (size, -(-self.widths[node, "both"] // size))
        self._connect(node, sources)
        if not node.outputs:
            self._keep(self._output(node, 0), "the network's output")

    def _convolution(self, node: Node, module: Any) -> None:
        """A depth-wise convolution's outputs are its inputs; channels of other grouped ones stay."""
        if module.groups == module.in_channels == module.out_channels:
            for i in range(module.in_channels):
                self._join(self.first[node, "in"] + i, self.first[node, "out"] + i)
        elif module.groups > 1:
            for side in ("in", "out"):
                self._keep((self.first[node, side], self.widths[node, side]), "a grouped convolution")

    def _connect(self, node: Node, sources: Sequence[tuple[int, int] | None]) -> None:
        side = "in" if (node, "in") in self.first else "both"
        first, width = self.first[node, side], self.widths[node, side]
        offset = 0
        for source in sources:
            if source is None or (node.type != OPTYPE.CONCAT and source[1] != width):
                self._keep(source, "an operation not followed")
                self._keep((first, width), "an operation not followed")
                continue
            for i in range(source[1]):
                self._join(first + offset + i, source[0] + i)
            if node.type == OPTYPE.CONCAT:
                offset += source[1]

    def _enter(self, node: Node, side: str, width: int) -> None:
        self.first[node, side], self.widths[node, side] = len(self.parent), width
        self.parent += range(len(self.parent), len(self.parent) + width)

    def _output(self, node: Node, part: int) -> tuple[int, int] | None:
        """First id and number of the channels of a node's output, None where they are not known."""
        side = "out" if (node, "out") in self.first else "both"
        if (node, side) not in self.first:
            return None
        first, width = self.first[node, side], self.widths[node, side]
        if node in self.parts:
            size, _ = self.parts[node]
            return first + part * size, min(size, width - part * size)
        return first, width

    def _keep(self, channels: tuple[int, int] | None, reason: str) -> None:
        if channels is not None:
            self.reasons.update(dict.fromkeys(range(channels[0], sum(channels)), reason))

    def _find(self, element: int) -> int:
        while self.parent[element] != element:
            self.parent[element] = self.parent[self.parent[element]]
            element = self.parent[element]
        return element

    def _join(self, one: int, other: int) -> None:
        first, second = sorted((self._find(one), self._find(other)))
        self.parent[second] = first

    def groups(self) -> list[Group]:
        """Channels with equal connections as segments, and segments that a split ties as groups."""
        connected: dict[int, dict[tuple[Node, str], list[int]]] = {}
        for (node, side), first in self.first.items():
            for i in range(self.widths[node, side]):
                connected.setdefault(self._find(first + i), {}).setdefault((node, side), []).append(i)
        reasons = {self._find(channel): reason for channel, reason in self.reasons.items()}
        alike: dict[Any, list[dict[tuple[Node, str], list[int]]]] = {}
        for root in sorted(connected):
            places = connected[root]
            parts = tuple(
                (node, i // self.parts[node][0]) for (node, _), at in places.items() if node in self.parts for i in at
            )
            signature = (tuple((place, len(at)) for place, at in places.items()), parts, reasons.get(root, ""))
            alike.setdefault(signature, []).append(places)
        segments: list[Segment] = []
        in_part: dict[Node, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for (placed, parts, reason), members in alike.items():
            ports = [(place, self._port(*place)) for place, _ in placed if place[0].module in self.names]
            ports.sort(key=lambda one: self.rank[one[1].name])
            if all(port.side == "in" for _, port in ports):
                continue  # channels of the image
            for node, part in dict.fromkeys(parts):
                in_part[node][part].append(len(segments))
            places_of = {port: torch.tensor([member[place] for member in members]) for place, port in ports}
            segments.append(Segment(places_of, reason))
        groups = _tie(segments, list(in_part.values()))
        return sorted(groups, key=lambda group: self.rank[group.name])

    def _port(self, node: Node, side: str) -> Port:
        module = node.module
        return Port(self.names[module], side, module, self.widths[node, side])


def _tie(segments: list[Segment], splits: Sequence[dict[int, list[int]]]) -> list[Group]:
    """Joins the segments that lie in different parts of one split; where the parts are not alike, they stay whole."""
    leader = list(range(len(segments)))
    for parts in splits:
        sizes = {tuple(segments[i].size for i in part) for part in parts.values()}
        if len(sizes) > 1:
            for index in (i for part in parts.values() for i in part):
                segments[index].reason = segments[index].reason or "a split into unlike parts"
            continue
        for together in zip(*parts.values()):
            roots = {leader[i] for i in together}
            leader = [min(roots) if one in roots else one for one in leader]
    members: dict[int, list[Segment]] = {}
    for index, segment in enumerate(segments):
        members.setdefault(leader[index], []).append(segment)
    return [Group(one) for one in members.values()]


def _is_followed(node: Node) -> bool:
    """Whether an operation without channels of its own passes them on in a known way."""
    function = node.grad_fn
    if node.type == OPTYPE.SLICE:
        return node.module.dim in (2, 3)  # rows or columns
    if node.type in (OPTYPE.CONCAT, OPTYPE.SPLIT):
        return function._saved_dim == 1 and (node.type == OPTYPE.CONCAT or hasattr(function, "_saved_split_size"))
    name = function.name().removesuffix("0").removesuffix("1").removesuffix("Backward")
    if name in FROM_THE_FIRST:
        return tuple(FROM_THE_FIRST[name](function)) == (0,)
    return node.type == OPTYPE.ELEMENTWISE and name in BY_CHANNEL
