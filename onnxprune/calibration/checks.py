"""What an input accepts: names, types, finite numbers, ids inside their tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from onnxprune.errors import DataError, quote
from onnxprune.graph.inputs import InputSpec

__all__ = ["MAX_ELEMENTS", "as_array", "castable", "contents", "names", "shown"]

MAX_ELEMENTS = 1 << 28
"""Of one sample of one input: the largest pictures and volumes stay well below."""

_SHOWN = 8


def shown(found: Iterable[str]) -> str:
    """Return names as a short list."""
    listed = sorted(found)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(map(quote, listed[:_SHOWN])) + rest


def names(given: Iterable[object], specs: Sequence[InputSpec], where: str) -> None:
    """Make sure that there is data for every input, and no other.

    Raises:
        DataError: with what is missing and what is too much.
    """
    there, wanted = {str(g) for g in given}, {s.name for s in specs}
    if there == wanted:
        return
    parts = [f"{word} {shown(keys)}" for word, keys in (("missing", wanted - there), ("extra", there - wanted)) if keys]
    raise DataError(
        f"{where} does not have the model's inputs ({'; '.join(parts)}): "
        f"give one array for each of {shown(wanted)}, and no other"
    )


def as_array(value: object, where: str) -> np.ndarray:
    """Return anything that numpy takes as an array of numbers or strings.

    Raises:
        DataError: it is no such thing.
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the foreign object's own conversion raises
        raise DataError(f"{where} is no array ({type(value).__name__}: {error}): give a numpy array") from error
    if array.dtype.kind == "O" and array.size and all(isinstance(v, str) for v in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "O":
        raise DataError(f"{where} holds Python objects ({type(value).__name__}): give an array of numbers")
    return array


def castable(spec: InputSpec, dtype: np.dtype[Any], where: str) -> None:
    """Make sure that data of this type may be fed, as far as the type alone can tell.

    Raises:
        DataError: objects, text for numbers, dates, records, complex numbers.
    """
    if dtype.hasobject:
        raise DataError(
            f"{where} has dtype object, which only pickle could read, and pickles are not opened: "
            f"save an array of {_type(spec)}"
        )
    text = spec.dtype.kind == "O"
    same_bytes = dtype.kind == "V" and dtype.names is None and _named_void(spec.dtype) == dtype
    if dtype != spec.dtype and not same_bytes and dtype.kind not in ("U" if text else "biuf") and not _custom(dtype):
        raise DataError(f"{where} has dtype {dtype}, and the input takes {_type(spec)}: convert it")


def contents(spec: InputSpec, array: np.ndarray, where: Sequence[str] | str) -> np.ndarray:
    """Return data in the input's own type, after a look at every number.

    Args:
        spec: of the input.
        array: samples along axis 0 if `where` names each of them.
        where: what to call the data, or every sample of it, in a message.

    Raises:
        DataError: NaN or Inf, a cast that would change a value, an id outside its table.
    """
    if spec.dtype.kind == "O":
        return array.astype(object)
    if array.dtype.kind == "V" and array.dtype == _named_void(spec.dtype):
        array = array.view(spec.dtype)  # numpy's file format has no name for bfloat16 and its like
    if array.dtype.kind not in "biu":
        wrong = ~np.isfinite(array)
        if wrong.any():
            raise DataError(_at(spec, where, wrong) + " holds NaN or Inf: leave that sample out, or mend it")
    out = array
    if array.dtype != spec.dtype:
        with np.errstate(all="ignore"):
            out = array.astype(spec.dtype)
            changed = (out.astype(array.dtype) != array) if not _safe(array.dtype, spec.dtype) else np.zeros(())
        if changed.any():
            raise DataError(
                _at(spec, where, changed) + f" is {array.dtype}, and {_type(spec)}, which the input takes, cannot hold "
                "every value: convert the data yourself"
            )
    if spec.bound is not None and out.size:
        wrong = (out < 0) | (out >= spec.bound)
        if wrong.any():
            value = out[wrong].flat[0]
            raise DataError(
                _at(spec, where, wrong) + f" holds {value}, and the table that the input indexes has the entries "
                f"0 to {spec.bound - 1}: use the tokenizer that belongs to the model"
            )
    return np.ascontiguousarray(out) if out.ndim else out


def _safe(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    return not (_custom(given) or _custom(wanted)) and np.can_cast(given, wanted, "safe")


def _custom(dtype: np.dtype[Any]) -> bool:
    """Return whether this is one of ml_dtypes' numbers (bfloat16 and the like)."""
    return dtype.kind == "V" and dtype.names is None and dtype.type is not np.void


def _named_void(dtype: np.dtype[Any]) -> np.dtype[Any] | None:
    """Return what numpy's file format makes of a type that it has no name for."""
    return np.dtype(f"V{dtype.itemsize}") if _custom(dtype) else None


def _type(spec: InputSpec) -> str:
    return "strings" if spec.dtype.kind == "O" else str(spec.dtype)


def _at(spec: InputSpec, where: Sequence[str] | str, wrong: np.ndarray) -> str:
    """Return the name of the first sample that has something wrong, and of the input."""
    if isinstance(where, str):
        return f"{where}: input {quote(spec.name)}"
    first = int(np.argmax(wrong.reshape(len(where), -1).any(axis=1))) if wrong.ndim else 0
    return f"{where[first]}: input {quote(spec.name)}"
