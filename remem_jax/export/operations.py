"""ONNX nodes for the operations of students, by the name of JAX's primitive.

What is broadcast keeps its small shape in the graph, whose own nodes broadcast.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax import lax
from onnx import helper

from remem_jax.checks import SettingError

_MAPS = 4  # Axes of what is (batch, height, width, channel) in JAX.
_CHANNELS_FIRST = (0, 3, 1, 2)


class Tensor(NamedTuple):
    """A value that is known when the graph runs.

    Attributes:
        name: In the graph.
        shape: As JAX has it, channels last; of 1 where it is still to be broadcast.
        dtype: Its type.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype[Any]


class Graph(NamedTuple):
    """An ONNX graph that grows.

    Attributes:
        nodes: In the order of their computation.
        constants: By name.
        numbers: How many nodes there are of each kind, for their names.
    """

    nodes: list[onnx.NodeProto]
    constants: dict[str, np.ndarray]
    numbers: collections.Counter[str]

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node of one output, and names it."""
        name = self._name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """Adds an array as it is, and names it."""
        name = self._name("constant")
        self.constants[name] = array
        return name

    def name_of(self, value: Any) -> str:
        """A tensor's name; a constant is added, channels first."""
        if isinstance(value, Tensor):
            return value.name
        array = np.asarray(value)
        return self.constant(array.transpose(_CHANNELS_FIRST) if array.ndim == _MAPS else array)

    def _name(self, kind: str) -> str:
        self.numbers[kind] += 1
        return f"{kind}_{self.numbers[kind]}"


def batch_norm(graph: Graph, given: Sequence[Any]) -> Tensor:
    """The node of `plain.batch_norm`."""
    maps, *vectors = given
    names = [graph.constant(np.asarray(vector)) for vector in vectors]
    name = graph.add("BatchNormalization", maps.name, *names, epsilon=0.0)
    return maps._replace(name=name)


def _pointwise(kind: str) -> Callable[[Graph, Any, Sequence[Any]], Tensor]:
    def apply(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
        # Constants last, as what looks for biases expects them.
        if kind in ("Add", "Mul", "Max", "Min"):
            given = sorted(given, key=lambda one: not isinstance(one, Tensor))
        name = graph.add(kind, *map(graph.name_of, given))
        shape = tuple(
            sizes[0] if all(size == sizes[0] for size in sizes) else _larger(sizes)
            for sizes in zip(*(_padded(one.shape, equation) for one in given), strict=True)
        )
        return Tensor(name, shape, np.dtype(equation.outvars[0].aval.dtype))

    return apply


def _padded(shape: tuple[Any, ...], equation: Any) -> tuple[Any, ...]:
    return (1,) * (len(equation.outvars[0].aval.shape) - len(shape)) + tuple(shape)


def _larger(sizes: Sequence[Any]) -> Any:
    return next(size for size in sizes if size != 1)


def _maximum(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    """ReLU, where the other is zero: runtimes fuse it."""
    maps, other = sorted(given, key=lambda one: not isinstance(one, Tensor))
    if isinstance(other, Tensor) or np.ndim(other) or other != 0:
        return _pointwise("Max")(graph, equation, given)
    return maps._replace(name=graph.add("Relu", maps.name))


def _minimum(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    """A clip, where the other is a number."""
    maps, other = sorted(given, key=lambda one: not isinstance(one, Tensor))
    if isinstance(other, Tensor) or np.ndim(other):
        return _pointwise("Min")(graph, equation, given)
    return maps._replace(name=graph.add("Clip", maps.name, "", graph.name_of(other)))


def _convolution(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    params, aval = equation.params, equation.outvars[0].aval
    maps, kernel = given
    wanted = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    usual = params["dimension_numbers"] == wanted and params["batch_group_count"] == 1
    if not usual or set(params["lhs_dilation"]) != {1} or isinstance(kernel, Tensor):
        raise SettingError("Only convolutions of NHWC by constant HWIO kernels can be ONNX.")
    weight = graph.constant(np.asarray(kernel).transpose(3, 2, 0, 1))
    name = graph.add(
        "Conv",
        _whole(graph, maps, equation),
        weight,
        kernel_shape=kernel.shape[:2],
        strides=params["window_strides"],
        pads=_pads(params["padding"]),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _max_pool(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    params, aval = equation.params, equation.outvars[0].aval
    name = graph.add(
        "MaxPool",
        _whole(graph, given[0], equation),
        kernel_shape=params["window_dimensions"][1:3],
        strides=params["window_strides"][1:3],
        pads=_pads(params["padding"][1:3]),
    )
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _pads(margins: Sequence[tuple[int, int]]) -> list[int]:
    """(before, after) of each axis, as ONNX has them: all of before, then all of after."""
    return [before for before, _ in margins] + [after for _, after in margins]


def _whole(graph: Graph, value: Any, equation: Any) -> str:
    """The name of a tensor that is not to be broadcast any more."""
    shape = equation.invars[0].aval.shape
    if not isinstance(value, Tensor) or len(value.shape) != len(shape):
        raise SettingError(f"ONNX's {equation.primitive.name} takes what is computed, no constant.")
    if all(one == other for one, other in zip(value.shape, shape, strict=True)):
        return value.name
    raise SettingError(f"{equation.primitive.name} of what is broadcast is not exported.")


def _product(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    left, right = given
    if equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())):
        raise SettingError("Only products of a matrix (batch, feature) by a matrix can be ONNX.")
    name = graph.add("Gemm", _whole(graph, left, equation), graph.name_of(right))
    aval = equation.outvars[0].aval
    return Tensor(name, aval.shape, np.dtype(aval.dtype))


def _sum(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    axes, shape = equation.params["axes"], equation.invars[0].aval.shape
    places = axes if len(shape) != _MAPS else [_CHANNELS_FIRST.index(axis) for axis in axes]
    whole, along = _whole(graph, given[0], equation), graph.constant(np.asarray(places, np.int64))
    aval = equation.outvars[0].aval
    if len(shape) == _MAPS and len(aval.shape) not in (2, 1):
        raise SettingError("Only sums over two or three axes of maps can be ONNX.")
    return Tensor(
        graph.add("ReduceSum", whole, along, keepdims=0), aval.shape, np.dtype(aval.dtype)
    )


def _broadcast(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    """New axes of size 1; sizes are left to whoever uses the tensor."""
    value, shape = given[0], equation.params["shape"]
    kept = equation.params["broadcast_dimensions"]
    small = tuple(value.shape[kept.index(i)] if i in kept else 1 for i in range(len(shape)))
    if len(kept) == len(shape):
        return value._replace(shape=small)
    order = _CHANNELS_FIRST if len(shape) == _MAPS else range(len(shape))
    axes = [place for place, axis in enumerate(order) if axis not in kept]
    name = graph.add("Unsqueeze", value.name, graph.constant(np.asarray(axes, np.int64)))
    return Tensor(name, small, value.dtype)


def _cast(graph: Graph, equation: Any, given: Sequence[Any]) -> Tensor:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == given[0].dtype:
        return given[0]
    name = graph.add("Cast", given[0].name, to=helper.np_dtype_to_tensor_dtype(dtype))
    return given[0]._replace(name=name, dtype=dtype)


TABLE: dict[str, Callable[[Graph, Any, Sequence[Any]], Tensor]] = {
    "add": _pointwise("Add"),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "convert_element_type": _cast,
    "div": _pointwise("Div"),
    "dot_general": _product,
    "logistic": _pointwise("Sigmoid"),
    "max": _maximum,
    "min": _minimum,
    "mul": _pointwise("Mul"),
    "reduce_sum": _sum,
    "reduce_window_max": _max_pool,
    "sub": _pointwise("Sub"),
}


def _small(params: dict[str, Any], array: np.ndarray) -> np.ndarray:
    shape, kept = params["shape"], params["broadcast_dimensions"]
    return array.reshape(
        [array.shape[kept.index(i)] if i in kept else 1 for i in range(len(shape))]
    )


# What is done to constants most often, by NumPy: JAX would compile it for every shape.
CONSTANT: dict[str, Callable[[dict[str, Any], np.ndarray], np.ndarray]] = {
    "broadcast_in_dim": _small,
    "convert_element_type": lambda params, array: array.astype(params["new_dtype"]),
}
