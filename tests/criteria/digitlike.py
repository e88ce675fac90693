"""A small network whose units can be permuted, scaled and silenced: what the battery asks questions about."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

FIRST, SECOND, HIDDEN = 6, 8, 7  # units of the groups `w1`, `w2` and `w3`


@dataclass
class Net:
    """Conv, BatchNormalization, Relu; Conv, Relu; Flatten; Gemm, Relu; Gemm.

    Attributes:
        seed: of the weights.
        hidden: width of the last group.
        weights: contents of its constants.
    """

    seed: int = 0
    hidden: int = HIDDEN
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        shapes = {
            **{"w1": (FIRST, 2, 3, 3), "scale": (FIRST,), "shift": (FIRST,), "mean": (FIRST,), "var": (FIRST,)},
            **{"w2": (SECOND, FIRST, 2, 2), "b2": (SECOND,)},
            **{"w3": (self.hidden, 4 * SECOND), "b3": (self.hidden,), "w4": (3, self.hidden), "b4": (3,)},
        }
        self.weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        for name in ("scale", "var"):
            self.weights[name] = rng.uniform(0.5, 1.5, FIRST)
        for name, w in self.weights.items():  # no two units are alike in size
            if len(w) > 3:
                w *= rng.uniform(0.3, 1.7, len(w)).reshape([-1] + [1] * (w.ndim - 1))
            self.weights[name] = w.astype(np.float32)

    def permuted(self, order: np.ndarray) -> Net:
        """Returns the same function with the units of `w1` in another order."""
        w = dict(self.weights)
        for name in ("w1", "scale", "shift", "mean", "var"):
            w[name] = w[name][order]
        w["w2"] = w["w2"][:, order]
        return Net(self.seed, self.hidden, {}).having(w)

    def rescaled(self, factor: float) -> Net:
        """Returns the same function with larger activations, and smaller weights behind them."""
        w = dict(self.weights)
        w |= {"scale": w["scale"] * factor, "shift": w["shift"] * factor, "w2": w["w2"] / factor}
        return Net(self.seed, self.hidden, {}).having(w)

    def silenced(self, unit: int) -> Net:
        """Returns a network in which all weights of one unit of `w1` are zero."""
        w = {name: a.copy() for name, a in self.weights.items()}
        for name in ("w1", "scale", "shift", "mean", "var"):
            w[name][unit] = 0
        w["w2"][:, unit] = 0
        return Net(self.seed, self.hidden, {}).having(w)

    def having(self, weights: dict[str, np.ndarray]) -> Net:
        """Returns the network with other contents of some constants."""
        self.weights = {**self.weights, **weights}
        return self

    def model(self) -> onnx.ModelProto:
        """Returns the network as a model; it takes `x` of (batch, 2, 6, 6)."""
        node = onnx.helper.make_node
        nodes = [
            node("Conv", ["x", "w1"], ["c1"]),
            node("BatchNormalization", ["c1", "scale", "shift", "mean", "var"], ["n1"]),
            node("Relu", ["n1"], ["r1"]),
            node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[2, 2]),
            node("Relu", ["c2"], ["r2"]),
            node("Flatten", ["r2"], ["f"]),
            node("Gemm", ["f", "w3", "b3"], ["g3"], transB=1),
            node("Relu", ["g3"], ["r3"]),
            node("Gemm", ["r3", "w4", "b4"], ["y"], transB=1),
        ]
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            nodes,
            "net",
            [info("x", onnx.TensorProto.FLOAT, ["n", 2, 6, 6])],
            [info("y", onnx.TensorProto.FLOAT, ["n", 3])],
            [onnx.numpy_helper.from_array(w.astype(np.float32), name) for name, w in self.weights.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


def pictures(count: int = 40, seed: int = 5) -> dict[str, np.ndarray]:
    """Returns inputs for it."""
    return {"x": np.random.default_rng(seed).normal(size=(count, 2, 6, 6)).astype(np.float32)}
