"""The weights of a parsed ONNX file, named after the modules that they come from.

PyTorch's exporter gives most weights numbers as names, which change with every export. A node's name tells its module:
`/blocks.3/attn/query/MatMul` for `blocks.3.attn.query`. Weights come out under the names and in the layouts of those
modules (a `MatMul` holds the transpose of a Linear's weight). Nothing in a file is executed, and no other file is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from convert.onnx_file import read_graph
from convert.onnx_ops import (
    Attributes,
    NodeError,
    check_conv,
    check_pool,
    module_path,
    read_attributes,
    require,
    tensor_value,
)
from convert.transforms import Shape
from port.files.errors import Refused

OPERANDS = ("weight", "bias", "running_mean", "running_var")  # inputs 1 to 4 of Conv and of the norms


class OnnxWeights(Mapping[str, np.ndarray]):
    """Weights of one file under their modules' names, made into arrays one at a time when asked for.

    `shapes` holds all shapes; `config` is derived from the graph; `ignored` is empty, as every weight must be used.
    """

    ignored: tuple[str, ...] = ()

    def __init__(self, read: dict[str, Callable[[], np.ndarray]], shapes: dict[str, Shape], config: Any) -> None:
        self._read = read
        self.shapes = shapes
        self.config = config

    def __getitem__(self, key: str) -> np.ndarray:
        """Float32, not writable."""
        return self._read[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)


class Graph:
    """One file. `found` maps a weight's key to where it is stored and whether it lies there transposed.

    Raises:
        Refused: an unreadable file, external data, sizes that do not match the file, or a weight that is computed or
            given twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = read_graph(path)
        graph, self._raw, self.opset = self.file
        if graph.sparse_initializer:
            raise self.error("sparse weights, unlike the official files")
        self.nodes: list[NodeProto] = list(graph.node)
        self.producers = {output: node for node in self.nodes for output in node.output if output}
        if not all(node.output and node.output[0] for node in self.nodes):
            raise self.error("a node has no output")
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        if len(self.stored) != len(graph.initializer):
            raise self.error("two initializers have the same name")
        given = sum(bool(output) for node in self.nodes for output in node.output)
        if len(self.producers) != given or self.producers.keys() & self.stored.keys():
            raise self.error("two nodes give one value")
        self.initializers = set(self.stored)
        self.attributes: dict[str, Attributes] = {}  # by the node's first output
        for node in self.nodes:
            with self._wrapped():
                self.attributes[node.output[0]] = read_attributes(node, self.opset)
            if node.op_type == "Constant" and "value" in self.attributes[node.output[0]]:
                self.stored[node.output[0]] = next(a.t for a in node.attribute if a.name == "value")
        self._roots = self._follow_identities()
        self.found: dict[str, tuple[str, bool]] = {}
        self.used: set[str] = set()
        self.eps: set[str] = set()
        for node in self.nodes:
            if module := module_path(node.name):
                self._collect(node, module)

    def error(self, message: str) -> Refused:
        return Refused(f"{self.path}: {message}")

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        try:
            yield
        except NodeError as error:
            raise self.error(str(error)) from None

    def shapes(self) -> dict[str, Shape]:
        """Shapes of all weights, as their modules have them."""
        dims = {key: tuple(self.stored[name].dims) for key, (name, _) in self.found.items()}
        return {key: shape[::-1] if self.found[key][1] else shape for key, shape in dims.items()}

    def weights(self, config: Any) -> OnnxWeights:
        """All weights.

        Raises:
            Refused: an initializer that no part of the model uses.
        """
        for name in sorted(self.initializers - self.used):
            tensor = self.stored[name]
            if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) > 1:
                raise self.error(f"the model has no place for initializer {name!r} {list(tensor.dims)}")

        def reader(name: str, transposed: bool) -> Callable[[], np.ndarray]:
            return lambda: self.array(name).T if transposed else self.array(name)

        return OnnxWeights({key: reader(*place) for key, place in self.found.items()}, self.shapes(), config)

    def array(self, name: str) -> np.ndarray:
        """A stored tensor, float32 and not writable."""
        self._check_storage(name, name)
        raw = self._raw_data(name)
        flat = np.array(self.stored[name].float_data, "<f4") if raw is None else np.frombuffer(raw, "<f4")
        return flat.reshape(tuple(self.stored[name].dims))

    def value(self, name: str) -> np.ndarray:
        """A stored tensor of any type; refused where the file does not hold it."""
        tensor, raw = self.stored[name], self._raw.get(name)
        if tensor.data_type == TensorProto.FLOAT:
            return self.array(name)
        try:
            if raw is None:
                return tensor_value(tensor)
            return np.frombuffer(raw, onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tensor.dims)
        except (ValueError, TypeError, KeyError) as error:
            raise self.error(f"{name} is not readable ({type(error).__name__})") from None

    def norm_eps(self) -> float:
        """The epsilon that all norms share."""
        if len(self.eps) != 1:
            raise self.error(
                f"norms with {len(self.eps)} different epsilons: {', '.join(sorted(self.eps)[:4]) or 'none'}"
            )
        return float(next(iter(self.eps)))

    def dilation(self, module: str) -> int:
        """First dilation of the convolution that is `module`, 1 where there is none."""
        found = (values for node, values in self.of("Conv") if module_path(node.name) == module)
        return int(next(found, {}).get("dilations", [1])[0])

    def segments(self) -> tuple[int, bool]:
        """Frames in each averaged segment, and whether the last sum is divided by that number even if it has
        fewer frames: `count_include_pad` of `AveragePool`, as onnxruntime 1.18 computes it.

        Raises:
            Refused: no such node, nodes that differ, or an average that is not one over segments.
        """
        pools = self.of("AveragePool")
        if not pools:
            raise self.error("no AveragePool node, so no average over segments")
        first = pools[0][1]
        with self._wrapped():
            for node, values in pools:
                check_pool(node, values)
                for name in ("kernel_shape", "count_include_pad"):
                    require(node, name, values[name], first[name])
        return int(first["kernel_shape"][0]), bool(first["count_include_pad"])

    def check_convolutions(self, layer: Callable[[str], Attributes]) -> None:
        """Compare each convolution with the arguments of the `layer` that uses its weight, by the weight's key.

        Raises:
            Refused: a convolution with other arguments than its layer.
        """
        shapes = self.shapes()
        for node, values in self.of("Conv"):
            key = f"{module_path(node.name)}.weight"
            if key not in shapes:
                raise self.error(f"{node.name or node.output[0]}: a convolution that belongs to no module")
            with self._wrapped():
                check_conv(node, values, shapes[key][2:], layer(key))

    def of(self, op: str) -> list[tuple[NodeProto, Attributes]]:
        """All nodes of an operator with their attributes."""
        return [(node, self.attributes[node.output[0]]) for node in self.nodes if node.op_type == op]

    def loose_tables(self) -> dict[str, np.ndarray]:
        """Stored float matrices that are not weights, by name; this marks them as used."""
        names = [
            name
            for name, tensor in self.stored.items()
            if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and name not in self.used
        ]
        self.used.update(names)
        return {name: self.array(name) for name in names}

    def drop_unit_affine(self, module: str) -> None:
        """Drop the ones and zeros that the exporter gives a norm without scale and shift.

        Raises:
            Refused: they are not ones and zeros.
        """
        for operand, neutral in (("weight", 1.0), ("bias", 0.0)):
            name, _ = self.found.pop(f"{module}.{operand}", ("", False))
            if name and not (self.array(name) == neutral).all():
                raise self.error(f"{module}.{operand} is not {neutral:g} throughout, which the model cannot express")

    def _collect(self, node: NodeProto, module: str) -> None:
        op, places = node.op_type, [self._resolve(name) for name in node.input]
        if op in ("Conv", "LayerNormalization", "BatchNormalization"):
            for operand, place in zip(OPERANDS, places[1:], strict=False):
                if place is None:
                    raise self.error(f"{node.name}: its {operand} is computed, expected a stored tensor")
                self._add(f"{module}.{operand}", place)
            if op != "Conv":
                self.eps.add(str(np.float32(self.attributes[node.output[0]]["epsilon"])))
        elif op == "MatMul" and places[-1] is not None:
            self._add(f"{module}.weight", places[-1], transposed=True)
        elif op in ("Add", "Mul") and (place := next((name for name in places if self._is_float(name)), None)):
            # A bias follows its MatMul; a LayerNorm in pieces adds epsilon to a mean, divides, scales and shifts.
            before = self._op_before(node, module)
            rank = len(self.stored[place].dims)
            if (op, before) == ("Add", "ReduceMean"):
                eps = self.array(place)
                if eps.size != 1:
                    raise self.error(f"{node.name}: {eps.size} epsilons, expected one")
                self.eps.add(str(eps.reshape(-1)[0]))
            elif (op, before, rank) in (("Add", "MatMul", 1), ("Add", "Mul", 1)):
                self._add(f"{module}.bias", place)
            elif (op, before, rank) == ("Mul", "Div", 1):
                self._add(f"{module}.weight", place)

    def _is_float(self, name: str | None) -> bool:
        return name is not None and self.stored[name].data_type == TensorProto.FLOAT

    def _op_before(self, node: NodeProto, module: str) -> str:
        """The operator in the same module that computes the input of `node` that is not stored."""
        makers = [self.producers[name] for name in node.input if name in self.producers and not self._resolve(name)]
        return makers[0].op_type if len(makers) == 1 and module_path(makers[0].name) == module else ""

    def _add(self, key: str, name: str, transposed: bool = False) -> None:
        if key in self.found:
            raise self.error(f"two nodes give {key}")
        tensor = self.stored[name]
        if transposed and len(tensor.dims) != 2:
            raise self.error(f"{key} has {len(tensor.dims)} dimensions, expected 2")
        self._check_storage(name, key)
        self.used.add(name)
        self.found[key] = (name, transposed)

    def _resolve(self, name: str) -> str | None:
        """Where a value is stored; follows Identity nodes, through which the exporter shares equal weights."""
        root = self._roots.get(name, name)
        return root if root in self.stored else None

    def _follow_identities(self) -> dict[str, str]:
        """The value at the start of each chain of Identity nodes, by the values along it; each is looked at once."""
        sources = {node.output[0]: node.input[0] for node in self.nodes if node.op_type == "Identity"}
        roots: dict[str, str] = {}
        for name in sources:
            chain: dict[str, None] = {}
            while name in sources and name not in roots:
                if name in chain:
                    raise self.error(f"{name} is defined by itself")
                chain[name] = None
                name = sources[name]
            roots.update(dict.fromkeys(chain, roots.get(name, name)))
        return roots

    def _check_storage(self, name: str, key: str) -> None:
        """Check that the bytes in the file match the shape that it claims for a tensor."""
        tensor = self.stored[name]
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise self.error(f"{key} lies in another file; external data is not read")
        if tensor.data_type != TensorProto.FLOAT:
            raise self.error(f"{key} holds data of type {tensor.data_type}, expected {TensorProto.FLOAT} (float32)")
        raw = self._raw_data(name)
        held = len(tensor.float_data) if raw is None else len(raw) / 4
        if min(tensor.dims, default=1) <= 0 or math.prod(tensor.dims) != held:
            raise self.error(f"{key} claims shape {list(tensor.dims)} but holds {held:g} values")

    def _raw_data(self, name: str) -> bytes | memoryview | None:
        """Bytes of a tensor that is stored as such: of an initializer in the file, of a constant in its node."""
        tensor = self.stored[name]
        return tensor.raw_data if tensor.HasField("raw_data") else self._raw.get(name)
