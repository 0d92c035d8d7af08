"""A student's jaxpr as an ONNX graph.

Maps, (batch, height, width, channel) in JAX, are (batch, channel, height, width) in the graph: the
images are transposed as they come in, kernels as they are stored, and nothing in between.
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
from remem_jax.export import operations, plain
from remem_jax.export.operations import Graph, Tensor
from remem_jax.records import Apply, Variables

_PLATFORM = "onnx"  # None of JAX's, so that each layer is one operation: its default.
OPSET = 18
_IR = 9  # The first that knows the opset; a higher one would shut out older runtimes.
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
# What a third input is for: an Add of one vector by channel becomes it.
_BIASED = ("Conv", "Gemm")


class Input(NamedTuple):
    """The images that a graph takes.

    Attributes:
        size: Side of the images, in pixels.
        dtype: "uint8", or "float32".
        batch: Images at once; 0 is any number.
    """

    size: int
    dtype: str
    batch: int


def of_apply(apply: Apply, variables: Variables, images: Input) -> onnx.ModelProto:
    """The graph of a model in evaluation mode, checked.

    Args:
        apply: Maps variables and images, NHWC, to logits.
        variables: Arrays, of the types that the graph computes in.
        images: What the graph takes.

    Raises:
        SettingError: If the model does something for which there is no node in `operations`.
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
    """A batch of any number of images, as JAX writes it."""
    (batch,) = jax_export.symbolic_shape(BATCH)
    return batch


def _outputs(graph: Graph, closed: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Adds the nodes of a jaxpr, calls inlined; what hangs on constants alone is computed now."""
    jaxpr = closed.jaxpr
    known: dict[Var, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        known |= dict(zip(equation.outvars, _applied(graph, equation, given), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _applied(graph: Graph, equation: Any, given: Sequence[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if params.get("name") == plain.BATCH_NORM:
        return [operations.batch_norm(graph, given)]
    if taken := platforms.branch(equation, _PLATFORM):
        return _outputs(graph, taken, given[1:])
    if name in _CALLS:
        inner = params.get("jaxpr") or params.get("call_jaxpr")
        return _outputs(graph, inner, given)
    if not any(isinstance(one, Tensor) for one in given):
        if name in operations.CONSTANT:
            return [operations.CONSTANT[name](params, given[0])]
        computed = equation.primitive.bind(*map(jnp.asarray, given), **params)
        several = computed if equation.primitive.multiple_results else [computed]
        return [np.asarray(one) for one in several]
    if name not in operations.TABLE:
        raise SettingError(
            f"There is no ONNX node for the operation {name} of this model "
            f"({', '.join(sorted(operations.TABLE))} have one): export it as stablehlo."
        )
    return [operations.TABLE[name](graph, equation, given)]


def _model(graph: Graph, images: Input, logits: Any) -> onnx.ModelProto:
    nodes = _with_biases(graph)
    used = {name for node in nodes for name in node.input}
    constants = [
        numpy_helper.from_array(np.ascontiguousarray(array), name)
        for name, array in graph.constants.items()
        if name in used
    ]
    batch = images.batch or BATCH
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(images.dtype))
    shape = (batch, images.size, images.size, 3)
    made = helper.make_model(
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
    onnx.checker.check_model(made, full_check=True)
    return made


def _with_biases(graph: Graph) -> list[onnx.NodeProto]:
    """The nodes, where a vector that is added to a product is an input of it."""
    uses = collections.Counter(name for node in graph.nodes for name in node.input)
    made = {node.output[0]: node for node in graph.nodes}
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        product = made.get(node.input[0]) if node.op_type == "Add" else None
        if product is not None and _takes(graph, product, node.input[1], uses):
            bias = graph.constants[node.input[1]]
            product.input.append(graph.constant(bias.reshape(-1)))
            product.output[0] = node.output[0]
            made[node.output[0]] = product
        else:
            kept.append(node)
    return kept


def _takes(
    graph: Graph, product: onnx.NodeProto, added: str, uses: collections.Counter[str]
) -> bool:
    """Whether what is added can be the bias of a product, which nothing else looks at."""
    if product.op_type not in _BIASED or len(product.input) != 2 or added not in graph.constants:
        return False
    shape, axis = graph.constants[added].shape, 1
    alone = uses[product.output[0]] == 1
    return alone and len(shape) > axis and int(np.prod(shape)) == shape[axis]
