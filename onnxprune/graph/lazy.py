"""Large tensors that take memory only while somebody looks at them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import numpy as np
import onnx_ir as ir

_SMALL = 1 << 16  # bytes; smaller tensors are copied: there are many, and each map is one of the whole file


class Mapped(ir.ExternalTensor):
    """A tensor in a data file whose content, unless it is small, is mapped for as long as an array of it lives.

    onnx-ir keeps what it has once mapped, so that a walk over all weights ends with the whole file in memory.
    """

    __slots__ = ()

    @classmethod
    def of(cls, tensor: ir.ExternalTensor) -> Mapped:
        """Returns the same tensor, mapped anew each time."""
        return cls(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=tensor.metadata_props,
            base_dir=tensor.base_dir,
        )

    def numpy(self) -> np.ndarray:
        """Returns the content, read-only; its pages are given back with the last array that shows them."""
        array = ir.ExternalTensor.numpy(copy(self))
        if array.nbytes < _SMALL:
            array = array.copy()
            array.flags.writeable = False
        return array

    def tobytes(self) -> bytes:
        """Returns the content as it is stored."""
        return ir.ExternalTensor.tobytes(copy(self))

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self.numpy().__array__(dtype)


class Striped(ir.LazyTensor):
    """A tensor that is made anew whenever it is read, and can be read stripe by stripe.

    Attributes:
        stripes: makes it, in parts along its first axis.
    """

    def __init__(
        self,
        stripes: Callable[[], Iterator[np.ndarray]],
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None = None,
        doc_string: str | None = None,
    ) -> None:
        super().__init__(self._whole, dtype, shape, name=name, doc_string=doc_string)
        self.stripes = stripes

    def _whole(self) -> ir.TensorProtocol:
        first, *others = self.stripes()
        whole = np.concatenate([first, *others]) if others else np.ascontiguousarray(first)
        return ir.Tensor(whole, dtype=self.dtype, name=self.name)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yields the content as it is stored."""
        if self.dtype.bitwidth < 8 or sys.byteorder == "big":  # several elements share a byte, or theirs are turned
            yield self.tobytes()
        else:
            for stripe in self.stripes():
                yield np.ascontiguousarray(stripe).reshape(-1).view(np.uint8).data
