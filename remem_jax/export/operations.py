"""ONNX nodes for the operations of students, by the name of JAX's primitive.

A broadcast tensor keeps its small shape, because ONNX nodes broadcast by themselves.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax import lax
from onnx import helper

from remem_jax.checks import SettingError
from remem_jax.export import folding
from remem_jax.models.operations import average_pool

_MAPS = 4  # Number of axes of feature maps, (batch, height, width, channel) in JAX.
_CHANNELS_FIRST = (0, 3, 1, 2)
_BIASED = ("Conv", "Gemm")  # Nodes with an optional third input, a bias per channel.


class Tensor(NamedTuple):
    """A value that the graph computes.

    Attributes:
        name: Name in the graph.
        shape: Shape in JAX, with channels last; 1 for axes that will be broadcast.
        dtype: Data type.
        is_tokens: Whether it is made from tokens. Four axes are then in JAX's order, and not those
            of feature maps with channels first.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype[Any]
    is_tokens: bool = False


class Graph(NamedTuple):
    """An ONNX graph under construction.

    Attributes:
        nodes: Nodes in the order of computation.
        constants: Constants by name.
        numbers: Number of nodes of each kind, for their names.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    numbers: collections.Counter[str]

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output; returns its name."""
        name = self._name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """Adds an array; returns its name."""
        name = self._name("constant")
        self.constants[name] = array
        return name

    def name_of(self, value: Any, *, among_tokens: bool = False) -> str:
        """Returns the name of a tensor; adds a constant, with channels first if it has four axes.

        Args:
            value: The tensor or the constant.
            among_tokens: Whether the other operands of the node are tokens; see `Tensor`.
        """
        if isinstance(value, Tensor):
            return value.name
        array = np.asarray(value)
        is_maps = array.ndim == _MAPS and not among_tokens
        return self.constant(array.transpose(_CHANNELS_FIRST) if is_maps else array)

    def _name(self, kind: str) -> str:
        self.numbers[kind] += 1
        return f"{kind}_{self.numbers[kind]}"


def _batch_norm(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds the node of `folding.batch_norm`."""
    del equation
    maps, *vectors = inputs
    names = [graph.constant(np.asarray(vector)) for vector in vectors]
    name = graph.add("BatchNormalization", maps.name, *names, epsilon=0.0)
    return maps._replace(name=name)


def pointwise(kind: str) -> Callable[[Graph, Any, Sequence[Any]], Tensor]:
    """Returns a function that adds the node of an operation on each entry."""

    def apply(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
        # Constants come last.
        if kind in ("Add", "Mul", "Max", "Min"):
            inputs = sorted(inputs, key=lambda value: not isinstance(value, Tensor))
        is_tokens = any(isinstance(value, Tensor) and value.is_tokens for value in inputs)
        name = graph.add(kind, *(graph.name_of(value, among_tokens=is_tokens) for value in inputs))
        shape = tuple(
            sizes[0] if all(size == sizes[0] for size in sizes) else _larger(sizes)
            for sizes in zip(*(_padded(value.shape, equation) for value in inputs), strict=True)
        )
        return Tensor(name, shape, np.dtype(equation.outvars[0].aval.dtype), is_tokens)

    return apply


def _padded(shape: tuple[Any, ...], equation: Any) -> tuple[Any, ...]:
    return (1,) * (len(equation.outvars[0].aval.shape) - len(shape)) + tuple(shape)


def _larger(sizes: Sequence[Any]) -> Any:
    return next(size for size in sizes if size != 1)


def _add(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Add, or makes a constant per channel the bias of the convolution or product before it.

    `graph` drops the node without a bias unless something else uses it.
    """
    product, bias = sorted(inputs, key=lambda value: not isinstance(value, Tensor))
    last = graph.nodes[-1]
    takes_bias = last.op_type in _BIASED and len(last.input) == 2
    if isinstance(bias, Tensor) or not takes_bias or last.output[0] != product.name:
        return pointwise("Add")(graph, equation, inputs)
    if np.ndim(bias) < 2 or np.size(bias) != np.shape(bias)[-1]:  # Not one value per channel.
        return pointwise("Add")(graph, equation, inputs)
    name = graph.add(last.op_type, *last.input, graph.constant(np.reshape(bias, -1)))
    graph.nodes[-1].attribute.extend(last.attribute)
    return product._replace(name=name)


def _maximum(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Relu if the other value is zero, because runtimes fuse it; else Max."""
    maps, other = sorted(inputs, key=lambda value: not isinstance(value, Tensor))
    if isinstance(other, Tensor) or np.ndim(other) or other != 0:
        return pointwise("Max")(graph, equation, inputs)
    return maps._replace(name=graph.add("Relu", maps.name))


def _minimum(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Clip if the other value is a number; else Min."""
    maps, other = sorted(inputs, key=lambda value: not isinstance(value, Tensor))
    if isinstance(other, Tensor) or np.ndim(other):
        return pointwise("Min")(graph, equation, inputs)
    return maps._replace(name=graph.add("Clip", maps.name, "", graph.name_of(other)))


def _convolution(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    params, aval = equation.params, equation.outvars[0].aval
    maps, kernel = inputs
    expected = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    is_supported = params["dimension_numbers"] == expected and params["batch_group_count"] == 1
    if not is_supported or set(params["lhs_dilation"]) != {1} or isinstance(kernel, Tensor):
        raise SettingError(
            "ONNX export supports only convolutions of NHWC inputs with constant HWIO kernels."
        )
    weight = graph.constant(np.asarray(kernel).transpose(3, 2, 0, 1))
    name = graph.add(
        "Conv",
        whole(graph, maps, equation),
        weight,
        kernel_shape=kernel.shape[:2],
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _max_pool(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    params, aval = equation.params, equation.outvars[0].aval
    name = graph.add(
        "MaxPool",
        whole(graph, inputs[0], equation),
        kernel_shape=params["window_dimensions"][1:3],
        strides=params["window_strides"][1:3],
        pads=_pads(params["padding"][1:3]),
    )
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _average_pool(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds the node of `average_pool.average_pool`."""
    aval = equation.outvars[0].aval
    maps, two = whole(graph, inputs[0], equation), [2, 2]
    name = graph.add("AveragePool", maps, kernel_shape=two, strides=two, ceil_mode=1)
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _pads(margins: Sequence[tuple[int, int]]) -> list[int]:
    """Converts (before, after) of each axis to ONNX: all before, then all after."""
    return [before for before, _ in margins] + [after for _, after in margins]


def whole(graph: Graph, value: Any, equation: Any) -> str:
    """Returns the name of a tensor that has its full shape; raises if it must be broadcast."""
    shape = equation.invars[0].aval.shape
    if not isinstance(value, Tensor) or len(value.shape) != len(shape):
        raise SettingError(f"ONNX export does not support {equation.primitive.name} of a constant.")
    if all(size == expected for size, expected in zip(value.shape, shape, strict=True)):
        return value.name
    raise SettingError(
        f"ONNX export does not support {equation.primitive.name} of a broadcast value."
    )


def product(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Gemm for a matrix (batch, feature) and a constant matrix."""
    left, right = inputs
    if equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
        raise SettingError(
            "ONNX export supports only products of a matrix (batch, feature) with a matrix."
        )
    name = graph.add("Gemm", whole(graph, left, equation), graph.name_of(right))
    aval = equation.outvars[0].aval
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _sum(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    axes, shape = equation.params["axes"], equation.invars[0].aval.shape
    is_maps = len(shape) == _MAPS and not inputs[0].is_tokens
    graph_axes = [_CHANNELS_FIRST.index(axis) for axis in axes] if is_maps else axes
    maps, along = (
        whole(graph, inputs[0], equation),
        graph.constant(np.asarray(graph_axes, np.int64)),
    )
    aval = equation.outvars[0].aval
    if is_maps and len(aval.shape) not in (2, 1):
        raise SettingError("ONNX export supports only sums over two or three axes of feature maps.")
    name = graph.add("ReduceSum", maps, along, keepdims=0)
    return Tensor(name, aval.shape, np.dtype(aval.dtype), inputs[0].is_tokens)


def _squeeze(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    value, axes = inputs[0], equation.params["dimensions"]
    is_maps = len(value.shape) == _MAPS and not value.is_tokens
    if is_maps and set(axes) != {1, 2}:
        raise SettingError("ONNX export can remove only both axes of pixels from feature maps.")
    graph_axes = [_CHANNELS_FIRST.index(axis) if is_maps else axis for axis in axes]
    name = graph.add("Squeeze", value.name, graph.constant(np.asarray(graph_axes, np.int64)))
    shape = tuple(size for axis, size in enumerate(value.shape) if axis not in axes)
    return Tensor(name, shape, value.dtype, value.is_tokens)


def _broadcast(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds axes of size 1; the nodes that use the tensor broadcast it."""
    value, shape = inputs[0], equation.params["shape"]
    kept = equation.params["broadcast_dimensions"]
    small = tuple(value.shape[kept.index(i)] if i in kept else 1 for i in range(len(shape)))
    if len(kept) == len(shape):
        return value._replace(shape=small)
    is_maps = len(shape) == _MAPS and not value.is_tokens
    order = _CHANNELS_FIRST if is_maps else range(len(shape))
    axes = [place for place, axis in enumerate(order) if axis not in kept]
    name = graph.add("Unsqueeze", value.name, graph.constant(np.asarray(axes, np.int64)))
    return Tensor(name, small, value.dtype, value.is_tokens)


def _cast(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == inputs[0].dtype:
        return inputs[0]
    name = graph.add("Cast", inputs[0].name, to=helper.np_dtype_to_tensor_dtype(dtype))
    return inputs[0]._replace(name=name, dtype=dtype)


TABLE: dict[str, Callable[[Graph, Any, Sequence[Any]], Tensor]] = {
    "add": _add,
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "div": pointwise("Div"),
    "dot_general": product,
    "logistic": pointwise("Sigmoid"),
    "max": _maximum,
    "min": _minimum,
    "mul": pointwise("Mul"),
    "reduce_sum": _sum,
    "reduce_window_max": _max_pool,
    "squeeze": _squeeze,
    "sub": pointwise("Sub"),
}
# Nodes for whole functions of the model, by their name in the jaxpr.
FUNCTIONS: dict[str, Callable[[Graph, Any, Sequence[Any]], Tensor]] = {
    folding.BATCH_NORM: _batch_norm,
    average_pool.NAME: _average_pool,
}


def _small(params: dict[str, Any], array: np.ndarray) -> np.ndarray:
    shape, kept = params["shape"], params["broadcast_dimensions"]
    return array.reshape(
        [array.shape[kept.index(i)] if i in kept else 1 for i in range(len(shape))]
    )


# The most frequent operations on constants, in NumPy: JAX would compile them for every shape.
CONSTANT: dict[str, Callable[[dict[str, Any], np.ndarray], np.ndarray]] = {
    "broadcast_in_dim": _small,
    "convert_element_type": lambda params, array: array.astype(params["new_dtype"]),
}
