"""ONNX nodes for the operations of Vision Transformers, whose tokens have JAX's order of axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import helper

from remem_jax.checks import SettingError
from remem_jax.export import operations
from remem_jax.export.operations import Graph, Tensor

_CHANNELS_LAST = (0, 2, 3, 1)


def layer_norm(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds the node of `folding.layer_norm`."""
    del equation
    tokens, scale, bias, epsilon = inputs
    vectors = [graph.constant(np.asarray(vector, tokens.dtype)) for vector in (scale, bias)]
    name = graph.add("LayerNormalization", tokens.name, *vectors, epsilon=float(epsilon))
    return tokens._replace(name=name)


def is_softmax(jaxpr: Any) -> bool:
    """Returns whether a jaxpr is the softmax of `models.operations.attention`."""
    kinds = [equation.primitive.name for equation in jaxpr.eqns]
    return kinds.count("mul") == 1 and {"reduce_max", "exp", "reduce_sum", "div"} <= set(kinds)


def softmax(graph: Graph, jaxpr: Any, scores: Tensor) -> Tensor:
    """Adds the node of scaled scores' softmax, which is computed in float32."""
    (product,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "mul")
    scale, wide = product.invars[1].val, _cast(graph, scores, np.dtype(np.float32))
    if scale != 1:
        factor = graph.constant(np.asarray(scale, np.float32))
        wide = wide._replace(name=graph.add("Mul", wide.name, factor))
    shares = wide._replace(name=graph.add("Softmax", wide.name, axis=-1))
    return _cast(graph, shares, scores.dtype)


def _tokens(graph: Graph, value: Tensor) -> Tensor:
    """Returns a tensor in JAX's order of axes."""
    if value.is_tokens or len(value.shape) != len(_CHANNELS_LAST):
        return value._replace(is_tokens=True)
    name = graph.add("Transpose", value.name, perm=_CHANNELS_LAST)
    return value._replace(name=name, is_tokens=True)


def _name(graph: Graph, value: Any) -> str:
    """Returns the name of a tensor or a constant in JAX's order of axes."""
    if isinstance(value, Tensor):
        return _tokens(graph, value).name
    return graph.name_of(value, among_tokens=True)


def _whole(graph: Graph, value: Any, equation: Any) -> str:
    """Returns the name of the first operand in JAX's order of axes."""
    operations.whole(graph, value, equation)
    return _tokens(graph, value).name


def _cast(graph: Graph, value: Tensor, dtype: np.dtype[Any]) -> Tensor:
    if value.dtype == dtype:
        return value
    name = graph.add("Cast", value.name, to=helper.np_dtype_to_tensor_dtype(dtype))
    return value._replace(name=name, dtype=dtype)


def _result(equation: Any, name: str) -> Tensor:
    aval = equation.outvars[0].aval
    return Tensor(name, aval.shape, np.dtype(aval.dtype), True)


def _reshaped(graph: Graph, name: str, shape: Sequence[Any]) -> str:
    """Adds Reshape, which keeps the first axis: the batch may have any size."""
    sizes = np.asarray([0, *shape[1:]], np.int64)
    return graph.add("Reshape", name, graph.constant(sizes))


def _reshape(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    before, after = equation.invars[0].aval.shape, equation.params["new_sizes"]
    if before[0] != after[0]:
        raise SettingError("ONNX export supports only reshapes that keep the batch.")
    name = _whole(graph, inputs[0], equation)
    return _result(equation, _reshaped(graph, name, after))


def _transpose(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    name = _whole(graph, inputs[0], equation)
    return _result(equation, graph.add("Transpose", name, perm=equation.params["permutation"]))


def _product(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Gemm for a matrix (batch, feature), MatMul for tokens and between tokens."""
    left, right = inputs
    (left_axes, right_axes), (left_batch, right_batch) = equation.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in equation.invars]
    if len(shapes[0]) == 2:
        return operations.product(graph, equation, inputs)
    if isinstance(right, Tensor):
        ranks, lead = list(map(len, shapes)), tuple(range(len(shapes[0]) - 2))
        is_product = ranks[0] == ranks[1] and left_batch == right_batch == lead
        if not is_product or (left_axes, right_axes) != ((ranks[0] - 1,), (ranks[0] - 2,)):
            raise SettingError("ONNX export supports only matrix products of the last two axes.")
        names = [_name(graph, value) for value in inputs]
        product = Tensor(graph.add("MatMul", *names), (), right.dtype, True)
    else:
        product = _by_matrix(graph, equation, left, np.asarray(right))
    aval = equation.outvars[0].aval
    product = product._replace(shape=aval.shape)
    return _cast(graph, product, np.dtype(aval.dtype))


def _by_matrix(graph: Graph, equation: Any, left: Tensor, kernel: np.ndarray) -> Tensor:
    """Multiplies the last axes of tokens with the first axes of a constant kernel."""
    (left_axes, right_axes), batches = equation.params["dimension_numbers"]
    rank, contracted = len(equation.invars[0].aval.shape), len(left_axes)
    are_last = left_axes == tuple(range(rank - contracted, rank))
    if batches != ((), ()) or not are_last or right_axes != tuple(range(contracted)):
        raise SettingError(
            "ONNX export supports only products of the last axes of tokens with the first axes of "
            "a kernel."
        )
    lead, features = left.shape[: rank - contracted], math.prod(kernel.shape[:contracted])
    name = _whole(graph, left, equation)
    if contracted > 1:
        name = _reshaped(graph, name, (*lead, features))
    name = graph.add("MatMul", name, graph.constant(kernel.reshape(features, -1)))
    if kernel.ndim - contracted > 1:
        name = _reshaped(graph, name, (*lead, *kernel.shape[contracted:]))
    return Tensor(name, (), left.dtype, True)


def _concatenate(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Concat, after Expand for operands that are the same for the whole batch."""
    first = next(value for value in inputs if isinstance(value, Tensor) and value.shape[0] != 1)
    batch, names = graph.add("Shape", first.name, start=0, end=1), []
    for value, atom in zip(inputs, equation.invars, strict=True):
        shape = atom.aval.shape
        name = _name(graph, value)
        if tuple(value.shape) != shape:
            rest = graph.constant(np.asarray(shape[1:], np.int64))
            name = graph.add("Expand", name, graph.add("Concat", batch, rest, axis=0))
        names.append(name)
    return _result(equation, graph.add("Concat", *names, axis=equation.params["dimension"]))


def _slice(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    params, shape = equation.params, equation.invars[0].aval.shape
    starts, limits = params["start_indices"], params["limit_indices"]
    axes = [i for i, size in enumerate(shape) if (starts[i], limits[i]) != (0, size)]
    if params["strides"] is not None or 0 in axes:
        raise SettingError("ONNX export supports only slices with stride 1, of the whole batch.")
    name = _whole(graph, inputs[0], equation)
    bounds = ([values[i] for i in axes] for values in (starts, limits))
    constants = [graph.constant(np.asarray(values, np.int64)) for values in (*bounds, axes)]
    return _result(equation, graph.add("Slice", name, *constants))


def _gather(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Gather for the index of one token, such as `tokens[:, 0]`."""
    numbers, (tokens, index) = equation.params["dimension_numbers"], inputs
    axes, whole = numbers.start_index_map, list(equation.invars[0].aval.shape)
    is_index = len(axes) == 1 and numbers.collapsed_slice_dims == axes
    if is_index and not isinstance(index, Tensor) and np.size(index) == 1:
        whole[axes[0]] = 1
        if tuple(whole) == tuple(equation.params["slice_sizes"]):
            name = _whole(graph, tokens, equation)
            number = graph.constant(np.asarray(index, np.int64).reshape(()))
            return _result(equation, graph.add("Gather", name, number, axis=axes[0]))
    raise SettingError("ONNX export supports only one constant index of one axis.")


def _unchanged(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    del graph, equation
    return inputs[0]


def _power(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    exponent = np.asarray(equation.params["y"], inputs[0].dtype)
    return inputs[0]._replace(name=graph.add("Pow", inputs[0].name, graph.constant(exponent)))


def _times(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds Mul, unless the factor is 1: the weight of a plain ViT's blocks."""
    value, factor = sorted(inputs, key=lambda value: not isinstance(value, Tensor))
    is_one = not isinstance(factor, Tensor) and np.ndim(factor) == 0 and factor == 1
    return value if is_one else operations.pointwise("Mul")(graph, equation, inputs)


def _erfc(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds 1 - Erf, because ONNX has no complement of it.

    JAX's GELU takes the complement at -x / sqrt(2). That is written as 1 + Erf(x / sqrt(2)), which
    ONNX Runtime fuses.
    """
    del equation
    value, one = inputs[0], np.ones((), inputs[0].dtype)
    minus, times = graph.nodes[-2:]
    if (minus.op_type, times.op_type, times.output[0]) == ("Neg", "Mul", value.name):
        divisor = np.asarray(1 / graph.constants[times.input[1]], value.dtype)
        quotient = graph.add("Div", minus.input[0], graph.constant(divisor))
        erf = graph.add("Erf", quotient)
        return value._replace(name=graph.add("Add", erf, graph.constant(one)))
    erf = graph.add("Erf", value.name)
    return value._replace(name=graph.add("Sub", graph.constant(one), erf))


TABLE: dict[str, Callable[[Graph, Any, Sequence[Any]], Tensor]] = {
    "concatenate": _concatenate,
    "copy": _unchanged,
    "dot_general": _product,
    "erf": operations.pointwise("Erf"),
    "erfc": _erfc,
    "gather": _gather,
    "integer_pow": _power,
    "mul": _times,
    "name": _unchanged,
    "neg": operations.pointwise("Neg"),
    "reshape": _reshape,
    "slice": _slice,
    "tanh": operations.pointwise("Tanh"),
    "transpose": _transpose,
}
