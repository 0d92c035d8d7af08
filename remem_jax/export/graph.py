"""Translates the jaxpr of a student into an ONNX graph.

Feature maps are (batch, height, width, channel) in JAX and (batch, channel, height, width) in the
graph: only the images are transposed, once, and the kernels when they are stored. Tokens keep
JAX's order of axes.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export as jax_export
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]  # Since 0.12 it is Jaxpr.
    Literal,
    Var,
)
from onnx import helper, numpy_helper

from remem_jax import platforms
from remem_jax.checks import SettingError
from remem_jax.export import folding, operations, token_operations
from remem_jax.export.operations import Graph, Tensor
from remem_jax.records import Apply, Variables

_PLATFORM = "onnx"  # Unknown to JAX, so that each layer uses its default: one operation.
OPSET = 18
_IR = 9  # The first version with this opset; older runtimes reject a later one.
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_FUNCTIONS = {**operations.FUNCTIONS, folding.LAYER_NORM: token_operations.layer_norm}
_TABLE = operations.TABLE | token_operations.TABLE
_CUSTOM_VJP = "custom_vjp_call"
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", _CUSTOM_VJP)


class Input(NamedTuple):
    """The input of a graph.

    Attributes:
        size: Side of the images, in pixels.
        dtype: "uint8" or "float32".
        batch: Batch size; 0 is any.
    """

    size: int
    dtype: str
    batch: int


def of_apply(apply: Apply, variables: Variables, images: Input) -> onnx.ModelProto:
    """Returns the checked graph of a model in evaluation mode.

    Args:
        apply: Maps variables and images (NHWC) to logits.
        variables: Arrays, in the types that the graph computes in.
        images: Input of the graph.

    Raises:
        SettingError: If the model has an operation that `operations` does not translate.
    """
    leaves, tree = jax.tree.flatten(variables)
    shape = (images.batch or symbolic_batch(), images.size, images.size, 3)

    def flat(arrays: list[Any], batch: jax.Array) -> jax.Array:
        return apply(jax.tree.unflatten(tree, arrays), batch)

    spec = jax.ShapeDtypeStruct(shape, jnp.dtype(images.dtype))
    jaxpr = jax.jit(flat).trace(leaves, spec).jaxpr
    graph = Graph([], {}, collections.Counter())
    first = graph.add("Transpose", INPUT, perm=[0, 3, 1, 2])
    inputs = [*map(np.asarray, leaves), Tensor(first, shape, np.dtype(images.dtype))]
    (out,) = _outputs(graph, jaxpr, inputs)
    graph.nodes.append(helper.make_node("Identity", [graph.name_of(out)], [OUTPUT]))
    return _model(graph, images, jaxpr.out_avals[0])


def symbolic_batch() -> Any:
    """Returns JAX's symbolic dimension for any batch size."""
    (batch,) = jax_export.symbolic_shape(BATCH)
    return batch


def _outputs(graph: Graph, closed: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Adds the nodes of a jaxpr; inlines calls, and computes operations on constants at once."""
    jaxpr = closed.jaxpr
    values: dict[Var, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val) if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        values |= dict(zip(equation.outvars, _translate(graph, equation, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _translate(graph: Graph, equation: Any, inputs: Sequence[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if function := _FUNCTIONS.get(params.get("name")):
        return [function(graph, equation, inputs)]
    if branch := platforms.branch(equation, _PLATFORM):
        return _outputs(graph, branch, inputs[1:])
    if name in _CALLS:
        return _call(graph, equation, inputs)
    if any(isinstance(value, Tensor) for value in inputs):
        return [_node(graph, equation, inputs)]
    if name in operations.CONSTANT:
        return [operations.CONSTANT[name](params, inputs[0])]
    computed = equation.primitive.bind(*map(jnp.asarray, inputs), **params)
    results = computed if equation.primitive.multiple_results else [computed]
    return [np.asarray(result) for result in results]


def _call(graph: Graph, equation: Any, inputs: Sequence[Any]) -> list[Any]:
    inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if equation.primitive.name == _CUSTOM_VJP and token_operations.is_softmax(inner):
        return [token_operations.softmax(graph, inner, *inputs)]
    return _outputs(graph, inner, inputs)


def _node(graph: Graph, equation: Any, inputs: Sequence[Any]) -> Tensor:
    """Adds the node of an operation on tensors."""
    name = equation.primitive.name
    if name not in _TABLE:
        raise SettingError(
            f"There is no ONNX node for the operation {name} of this model (supported: "
            f"{', '.join(sorted(_TABLE))}): export it with --format=stablehlo."
        )
    return _TABLE[name](graph, equation, inputs)


def _model(graph: Graph, images: Input, logits: Any) -> onnx.ModelProto:
    used, nodes = {OUTPUT}, []
    for node in reversed(graph.nodes):
        if used & set(node.output):
            nodes.insert(0, node)
            used |= set(node.input)
    constants = [
        numpy_helper.from_array(np.asarray(array, order="C"), name)
        for name, array in graph.constants.items()
        if name in used
    ]
    batch = images.batch or BATCH
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(images.dtype))
    shape = (batch, images.size, images.size, 3)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "student",
            [helper.make_tensor_value_info(INPUT, dtype, shape)],
            [
                helper.make_tensor_value_info(
                    OUTPUT, onnx.TensorProto.FLOAT, (batch, logits.shape[-1])
                )
            ],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR,
        producer_name="remem_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    return model
