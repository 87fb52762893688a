"""The attributes of ONNX nodes: the value in the file or ONNX's default, and the values that a model supports.

ONNX's schemas define the attributes of an operator, their types and defaults. If only one value of an attribute is
supported, any other is refused. `convert.onnx_run` executes all other attributes, and its result is compared with the
model's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, defs

from convert.onnx_file import OnnxFile

Attributes = dict[str, Any]
MAX_SHOWN = 60  # longest value in a message, in characters
CASTS = tuple(getattr(onnx.TensorProto, name) for name in ("FLOAT", "INT32", "INT64", "BOOL", "DOUBLE"))

# Operator -> attribute -> the values that the models can express.
SUPPORTED: dict[str, dict[str, Sequence[Any]]] = {
    "Conv": {"auto_pad": ("NOTSET",)},
    "AveragePool": {"auto_pad": ("NOTSET",), "ceil_mode": (1,), "count_include_pad": (0, 1)},
    "BatchNormalization": {"training_mode": (0,), "spatial": (1,), "is_test": (1,)},
    "LayerNormalization": {"axis": (-1, 2), "stash_type": (1,)},
    "Softmax": {"axis": (-1, 3)},
    "Cast": {"to": CASTS},
    "Gemm": {"alpha": (1.0,), "beta": (1.0,)},
    "Gelu": {"approximate": ("none",)},
    **{name: {"keepdims": (0, 1)} for name in ("ReduceMean", "ReduceSum", "ReduceL2", "ReduceMax")},
}


class NodeError(ValueError):
    """An attribute that the models cannot express; the message is one line."""


def read_attributes(node: NodeProto, opset: int) -> Attributes:
    """Every attribute of a node by name, with ONNX's defaults; for an operator outside ONNX, just those in the file.

    Raises:
        NodeError: an attribute that the operator does not have, of another type or given twice, a value that the
            models cannot express, or a number of inputs that the operator does not take.
    """
    given = {attribute.name: attribute for attribute in node.attribute}
    if len(given) != len(node.attribute):
        raise NodeError(f"{label(node)}: an attribute is given twice")
    try:
        schema = defs.get_schema(node.op_type, opset, "" if node.domain == "ai.onnx" else node.domain)
    except defs.SchemaError:
        return {name: _value(node, attribute) for name, attribute in given.items()}
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise NodeError(f"{label(node)}: {len(node.input)} inputs, which {node.op_type} does not take")
    values: Attributes = {}
    for name, known in schema.attributes.items():
        kind: Any = known.type  # an enumeration, of which onnx's own types know nothing
        if name in given:
            if int(given[name].type) != int(kind.value) or given[name].ref_attr_name:
                raise NodeError(f"{label(node)}: {name} is of type {given[name].type}, expected {known.type}")
            values[name] = _value(node, given[name])
        elif known.required:
            raise NodeError(f"{label(node)}: {name} is missing, which {node.op_type} needs")
        elif known.default_value.type != AttributeProto.UNDEFINED:
            values[name] = _value(node, known.default_value)
    if unknown := sorted(given.keys() - values.keys()):
        supported = f"{node.op_type} of operator set {opset} has {', '.join(sorted(schema.attributes)) or 'none'}"
        raise NodeError(f"{label(node)}: unknown attribute {unknown[0]!a}; {supported}")
    for name, allowed in SUPPORTED.get(node.op_type, {}).items():
        if name in values and values[name] not in allowed:
            require(node, name, values[name], " or ".join(map(str, allowed)), False)
    return values


def require(node: NodeProto, name: str, value: Any, supported: Any, holds: bool | None = None) -> None:
    """Raise an error that names node, attribute and values, unless `value` is `supported`.

    Raises:
        NodeError: it is not.
    """
    if not (value == supported if holds is None else holds):
        raise NodeError(f"{label(node)}: {name} is {show(value)}, supported is {show(supported)}")


def check_conv(node: NodeProto, values: Attributes, kernel: tuple[int, ...], wanted: Attributes) -> None:
    """Compare a convolution with the layer that will compute it.

    Args:
        values: of `read_attributes`.
        kernel: its weight's size in space.
        wanted: `strides`, `pads` (of one side), `dilations` and `group` of the layer.

    Raises:
        NodeError: they differ.
    """
    ones = [1] * len(kernel)
    require(node, "kernel_shape", values.get("kernel_shape", list(kernel)), list(kernel))
    require(node, "strides", values.get("strides", ones), wanted["strides"])
    require(node, "dilations", values.get("dilations", ones), wanted["dilations"])
    require(node, "pads", values.get("pads", [0] * 2 * len(kernel)), wanted["pads"] * 2)
    require(node, "group", values["group"], wanted["group"])


def check_pool(node: NodeProto, values: Attributes) -> None:
    """Check an average over segments: they must be adjacent and not padded.

    Raises:
        NodeError: they are not.
    """
    kernel = values["kernel_shape"]
    require(node, "kernel_shape", kernel, "one size above 0", len(kernel) == 1 and kernel[0] > 0)
    require(node, "strides", values.get("strides", [1]), kernel)
    require(node, "pads", values.get("pads", [0, 0]), [0, 0])
    require(node, "dilations", values.get("dilations", [1]), [1])


def odd_one(file: OnnxFile) -> str:
    """The first attribute or constant that differs from those of the modules like its own, in words; '' for none."""
    groups: dict[tuple[str, str], list[tuple[NodeProto, str]]] = {}
    for node in file.graph.node:
        for attribute in node.attribute:
            if node.name:
                place = re.sub("[0-9]+", "#", module_path(node.name)), node.name.rpartition("/")[2]
                key = "/".join(place), attribute.name
                groups.setdefault(key, []).append((node, show(_value(node, attribute), None)))
    for (_, name), members in groups.items():
        values = [value for _, value in members]
        common = max(values, key=values.count)
        if values.count(common) > len(values) / 2 and values.count(common) < len(values):
            node, value = next((node, value) for node, value in members if value != common)
            return f"{label(node)}: {name} is {show(value)}, in the modules like it {show(common)}"
    return ""


def module_path(node_name: str) -> str:
    """`/head/layer1/layer1.0/conv1/Conv` -> `head.layer1.0.conv1`: items of a list repeat the list's name."""
    path: list[str] = []
    for scope in node_name.strip("/").split("/")[:-1]:
        if path and scope.startswith(f"{path[-1]}."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)


def label(node: NodeProto) -> str:
    """The name of a node in messages."""
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')}".rstrip()


def show(value: Any, most: int | None = MAX_SHOWN) -> str:
    """A value for a message: one line of plain characters, cut."""
    text = " ".join(str(value.tolist() if isinstance(value, np.ndarray) else value).split())
    text = text.encode("ascii", "backslashreplace").decode()
    return text if most is None or len(text) <= most else f"{text[:most]}..."


def _value(node: NodeProto, attribute: AttributeProto) -> Any:
    """Numbers and lists as they are, text as str, a tensor as an array."""
    try:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            return tensor_value(value)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise NodeError(f"{label(node)}: {attribute.name} is not readable ({type(error).__name__})") from None
    if isinstance(value, bytes):
        return value.decode("ascii", "backslashreplace")
    return list(value) if isinstance(value, list | tuple) or hasattr(value, "extend") else value


def tensor_value(tensor: onnx.TensorProto) -> np.ndarray:
    """A tensor that a node holds.

    Raises:
        ValueError: data in another file, or other sizes than it claims.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ValueError("external data is not read")
    return onnx.numpy_helper.to_array(tensor)
