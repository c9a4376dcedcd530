"""An ONNX graph that can be rewritten: nodes by what they make and use, constants as arrays, shapes where known.

Invariants, kept by every method and restored by `proto`:
1. The names and types of the graph's inputs and outputs never change.
2. Every node has a unique name: its own, or its operator's with a number where it had none or shared one.
3. `proto` gives the nodes in an order in which each comes after what feeds it, the order they had where that
   allows it, without nodes and constants that nothing uses; the same rewrites give the same bytes.
4. A name that a subgraph (of If, Loop or Scan) uses is `pinned`, like an output: no rewrite may remove it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Shape = tuple[int | None, ...]
MICROSOFT = "com.microsoft"
STANDARD_DOMAINS = ("", "ai.onnx")


class Graph:
    """A model's main graph, to be changed in place. `nodes` are in order; `shapes` has what is known by tensor name."""

    def __init__(self, model: ModelProto) -> None:
        self._model = ModelProto()
        self._model.CopyFrom(model)
        graph = self._model.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._arrays: dict[str, NDArray[Any]] = {}
        self.nodes: list[NodeProto] = list(graph.node)
        self.inputs = tuple(value.name for value in graph.input if value.name not in self._constants)
        self.outputs = tuple(value.name for value in graph.output)
        self.pinned = {*self.outputs, *_names_in_subgraphs(graph.node)}
        self.shapes: dict[str, Shape] = {}
        self._taken = {name for node in self.nodes for name in (*node.input, *node.output)} | set(self._constants)
        self._taken |= {*self.inputs, *self.outputs}
        _name_nodes(self.nodes)
        self._index()

    @classmethod
    def of_bytes(cls, model: bytes) -> Graph:
        """The graph of a serialised model, shapes inferred."""
        graph = cls(onnx.load_from_string(model))
        graph.infer_shapes()
        return graph

    def _index(self) -> None:
        self._producers: dict[str, NodeProto] = {}
        self._consumers: dict[str, list[NodeProto]] = {}
        self._add_to_index(self.nodes)

    def _add_to_index(self, nodes: Iterable[NodeProto]) -> None:
        for node in nodes:
            self._producers.update((output, node) for output in node.output if output)
            for name in dict.fromkeys(node.input):
                if name:
                    self._consumers.setdefault(name, []).append(node)

    def _take_from_index(self, node: NodeProto) -> None:
        for output in node.output:
            if self._producers.get(output) is node:
                del self._producers[output]
        for name in set(node.input) & set(self._consumers):
            self._consumers[name] = [user for user in self._consumers[name] if user is not node]

    def holds(self, node: NodeProto) -> bool:
        """Whether a node is still in the graph."""
        return self._producers.get(node.output[0]) is node

    def producer(self, name: str, *operators: str) -> NodeProto | None:
        """The node that makes a tensor, where there is one and it is one of `operators` (none named: any)."""
        node = self._producers.get(name)
        return node if node is not None and (not operators or node.op_type in operators) else None

    def consumers(self, name: str) -> list[NodeProto]:
        """The nodes that use a tensor, in order, each once."""
        return self._consumers.get(name, [])

    def sole_consumer(self, name: str, *operators: str) -> NodeProto | None:
        """The only user of a tensor that nothing else sees, where it is one of `operators` (none named: any)."""
        users = self.consumers(name)
        if name in self.pinned or len(users) != 1 or list(users[0].input).count(name) != 1:
            return None
        return users[0] if not operators or users[0].op_type in operators else None

    def feeds_only(self, name: str, node: NodeProto) -> bool:
        """Whether `node` is the only user of a tensor that nothing else sees."""
        return any(user is node for user in [self.sole_consumer(name)])

    def by_operator(self, *operators: str) -> Iterator[NodeProto]:
        """Nodes of these operators that are still in the graph when their turn comes."""
        for node in [node for node in self.nodes if node.op_type in operators]:
            if self.holds(node):
                yield node

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is stored in the file."""
        return name in self._constants

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a stored tensor, or None for one that is computed. Not to be written to."""
        if name not in self._constants:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self._constants[name])
        return self._arrays[name]

    def float_constant(self, name: str) -> NDArray[np.float32] | None:
        """The value of a stored fp32 tensor, or None."""
        return self.constant(name) if self._is_float(name) else None

    def _is_float(self, name: str) -> bool:
        return name in self._constants and self._constants[name].data_type == TensorProto.FLOAT

    def constants(self) -> dict[str, TensorProto]:
        """All stored tensors by name. Not to be changed."""
        return self._constants

    def store(self, name: str, array: NDArray[Any]) -> str:
        """Keep `array` as a new constant named after `name`; the name it got."""
        unique = self.new_name(name)
        # fp32 weights stay fp32 whatever numpy made of them on the way
        exact = np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float64 else array.dtype)
        self.shapes[unique] = tuple(exact.shape)
        self._constants[unique] = numpy_helper.from_array(exact.reshape(array.shape), unique)
        return unique

    def new_name(self, name: str) -> str:
        """A tensor name that is free: `name`, or `name` with a number."""
        unique, number = name, 1
        while unique in self._taken:
            unique, number = f"{name}_{number}", number + 1
        self._taken.add(unique)
        return unique

    def become_constant(self, name: str, array: NDArray[Any]) -> None:
        """Let the tensor `name`, which a node made, be a constant: the node no longer makes it."""
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        self.shapes[name] = tuple(array.shape)

    def replace(self, old: Iterable[NodeProto], new: Sequence[NodeProto]) -> None:
        """Put `new` where the first of `old` was, and take `old` away."""
        taken = {id(node): node for node in old}
        place = next((place for place, node in enumerate(self.nodes) if id(node) in taken), len(self.nodes))
        kept = [node for node in self.nodes if id(node) not in taken]
        for node in taken.values():
            self._take_from_index(node)
        _name_nodes(new, taken={node.name for node in kept})
        self._add_to_index(new)
        kept[place:place] = new
        self.nodes = kept

    def rewire(self, old: str, new: str) -> None:
        """Let every user of the tensor `old` use `new` instead."""
        for node in list(self.consumers(old)):
            self.set_inputs(node, [new if name == old else name for name in node.input])

    def set_inputs(self, node: NodeProto, inputs: Sequence[str]) -> None:
        """Let a node use other tensors."""
        self._take_from_index(node)
        node.input[:] = inputs
        self._add_to_index([node])

    def bypass(self, node: NodeProto) -> bool:
        """Take away a node whose first output equals its first input. False, and nothing done, where it must stay."""
        source, result = node.input[0], node.output[0]
        if result not in self.pinned:
            self.replace([node], [])
            self.rewire(result, source)
            return True
        maker = self.producer(source)
        if maker is None or source in self.pinned:
            return False
        # the graph's output keeps its name: who made the source makes it now
        self.replace([node], [])
        self._take_from_index(maker)
        maker.output[list(maker.output).index(source)] = result
        self._add_to_index([maker])
        self.rewire(source, result)
        return True

    def shape(self, name: str) -> Shape | None:
        """A tensor's shape, None for a dimension that varies; None where even the rank is unknown."""
        return self.shapes.get(name)

    def infer_shapes(self) -> None:
        """Fill `shapes` from ONNX's inference; what inference cannot tell and was known before stays."""
        model = self.proto()
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                found = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
                known = self.shapes.get(value.name)
                if known is None or len(known) != len(found):
                    self.shapes[value.name] = found
                else:
                    self.shapes[value.name] = tuple(
                        a if a is not None else b for a, b in zip(found, known, strict=True)
                    )
        for name, tensor in self._constants.items():
            self.shapes[name] = tuple(tensor.dims)

    def opset(self) -> int:
        """The version of the standard operators."""
        return max((entry.version for entry in self._model.opset_import if entry.domain in STANDARD_DOMAINS), default=0)

    def use_microsoft_operators(self) -> None:
        """Declare that the graph uses operators of ONNX Runtime's own domain."""
        if all(entry.domain != MICROSOFT for entry in self._model.opset_import):
            self._model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))

    def proto(self) -> ModelProto:
        """The model as it is now: ordered, and without what nothing uses."""
        model = ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        live = self._live(_ordered(self.nodes))
        used = {name for node in live for name in node.input} | self.pinned
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(live)
        graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in used)
        kept = [value for value in graph.input if value.name in self.inputs]
        del graph.input[:]
        graph.input.extend(kept)
        # ONNX's inference knows no operator of ONNX Runtime's own, and a quantizer asks for the shape behind each
        graph.value_info.extend(
            helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, self.shapes[node.output[0]])
            for node in live
            if node.domain == MICROSOFT and node.output[0] in self.shapes
        )
        return model

    def tidy(self) -> None:
        """Forget nodes that nothing uses."""
        self.nodes = self._live(_ordered(self.nodes))
        self._index()

    def _live(self, ordered: Sequence[NodeProto]) -> list[NodeProto]:
        needed, live = set(self.pinned), []
        for node in reversed(ordered):
            if any(output in needed and output not in self._constants for output in node.output):
                live.append(node)
                needed.update(node.input)
        return live[::-1]


def attributes(node: NodeProto) -> dict[str, Any]:
    """A node's attributes by name: ints, floats, strings as bytes, lists, tensors."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def has_subgraph(node: NodeProto) -> bool:
    """Whether a node holds graphs of its own (If, Loop, Scan)."""
    return any(attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for attribute in node.attribute)


def make_node(operator: str, inputs: Sequence[str], outputs: Sequence[str], *, name: str, **settings: Any) -> NodeProto:
    """A new node; `domain` among `settings` where it is not a standard operator."""
    return helper.make_node(operator, list(inputs), list(outputs), name=name, **settings)


def _names_in_subgraphs(nodes: Iterable[NodeProto]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                names |= {name for inner in graph.node for name in inner.input if name} | _names_in_subgraphs(
                    graph.node
                )
                names |= {value.name for value in graph.output}
    return names


def _name_nodes(nodes: Sequence[NodeProto], *, taken: Iterable[str] = ()) -> None:
    """Give each of `nodes` a name of its own; the first that bears a name keeps it."""
    others = {*taken, *(node.name for node in nodes)}
    seen = set(taken)
    for place, node in enumerate(nodes):
        if not node.name or node.name in seen:
            base = node.name or node.op_type
            node.name = next(name for name in (f"{base}_{n}" for n in itertools.count(place)) if name not in others)
            others.add(node.name)
        seen.add(node.name)


def _ordered(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes in an order that can run; nodes that already are in one keep it."""
    makes = {output: place for place, node in enumerate(nodes) for output in node.output if output}
    ordered: list[NodeProto] = []
    state = [0] * len(nodes)
    for start in range(len(nodes)):
        pending = [start]
        while pending:
            place = pending[-1]
            if state[place] == 0:
                state[place] = 1
                names = (*nodes[place].input, *_names_in_subgraphs([nodes[place]]))
                waits = {makes[name] for name in names if name in makes and state[makes[name]] == 0} - {place}
                pending += sorted(waits, reverse=True)
            else:
                pending.pop()
                if state[place] == 1:
                    state[place] = 2
                    ordered.append(nodes[place])
    return ordered
