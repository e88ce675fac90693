"""Some nodes of a model run alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.graph.runtime import open_session, run

__all__ = ["run_nodes"]

CPU = ("CPUExecutionProvider",)


def run_nodes(
    model: ir.Model,
    nodes: Iterable[ir.Node],
    made: str,
    constants: Mapping[str, ir.TensorProtocol],
    feeds: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Returns a value that nodes make.

    Args:
        model: where they stand.
        nodes: the nodes, in order.
        made: the value's name.
        constants: what they read of the model, by name.
        feeds: what they read besides, by name; may differ from the model's in type.

    Raises:
        ModelError, RunError: onnxruntime does not take them, or they do not run.
    """
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "nodes",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in feeds.items()
        ],
        [onnx.ValueInfoProto(name=made)],
        [ir.to_proto(ir.Tensor(t.numpy(), dtype=t.dtype, name=name)) for name, t in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.graph.opset_imports.items()]
    session = open_session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version), CPU)
    return np.asarray(run(session, [made], feeds)[0])
