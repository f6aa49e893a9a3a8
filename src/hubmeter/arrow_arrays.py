"""
Arrow arrays from numpy and Python, without ``pyarrow.array``.

That one imports pandas (pyarrow 26: 0.2 s and 34 MB), at the exit of a program that may
not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Valid: TypeAlias = NDArray[np.bool_] | None
"""Which values are not null; None if all are."""


def numbers(values: NDArray[Any], valid: Valid = None) -> pa.Array:
    """An array of the type that *values* have."""
    contiguous = np.ascontiguousarray(values)
    type_ = pa.from_numpy_dtype(contiguous.dtype)
    return _array(type_, len(values), valid, contiguous)


def texts(values: Sequence[str | None]) -> pa.Array:
    """An array of strings."""
    encoded = [b"" if value is None else value.encode() for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(text) for text in encoded], out=offsets[1:])
    return _array(pa.string(), len(values), _present(values), offsets, b"".join(encoded))


def repeated(text: str, count: int) -> pa.Array:
    """*count* times *text*."""
    return texts([text]).take(numbers(np.zeros(count, dtype=np.int64)))


def column(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """
    An array of Python values, None for null.

    Args:
        values: Each as *type_* wants it; lists as sequences, structs as mappings.
        type_: A number, bool or string; or a list or struct of such.
    """
    if pa.types.is_string(type_):
        return texts(values)
    if pa.types.is_list(type_):
        return _lists(values, type_)
    if pa.types.is_struct(type_):
        fields = [column([v and v[f.name] for v in values], f.type) for f in type_]
        return pa.StructArray.from_arrays(fields, fields=list(type_))
    if pa.types.is_boolean(type_):
        bits = _bits(np.array([bool(value) for value in values], dtype=bool))
        return _array(type_, len(values), _present(values), bits)
    dtype = np.dtype(type_.to_pandas_dtype())
    dense = np.array([0 if value is None else value for value in values], dtype=dtype)
    return numbers(dense, _present(values))


def shared(values: Sequence[Any], type_: pa.DataType, places: NDArray[np.int64]) -> pa.Array:
    """What is at *places* of *values*; of texts a dictionary, which has each of them once."""
    if not pa.types.is_string(type_):
        return column(values, type_).take(numbers(places))
    distinct = list(dict.fromkeys(value for value in values if value is not None))
    number = {text: place for place, text in enumerate(distinct)}
    index = np.array([number.get(value, -1) for value in values], dtype=np.int32)[places]
    return pa.DictionaryArray.from_arrays(
        numbers(np.maximum(index, 0), index >= 0), texts(distinct)
    )


def _lists(values: Sequence[Sequence[Any] | None], type_: pa.DataType) -> pa.Array:
    offsets = np.zeros(len(values) + 1, dtype=np.int32)
    np.cumsum([len(value or ()) for value in values], out=offsets[1:])
    items = column([item for value in values for item in value or ()], type_.value_type)
    valid = _present(values)
    mask = None if valid is None else _booleans(~valid)
    return pa.ListArray.from_arrays(numbers(offsets), items, type=type_, mask=mask)


def _booleans(values: NDArray[np.bool_]) -> pa.Array:
    return _array(pa.bool_(), len(values), None, _bits(values))


def _present(values: Sequence[Any]) -> Valid:
    valid = np.array([value is not None for value in values], dtype=bool)
    return None if valid.all() else valid


def _array(type_: pa.DataType, size: int, valid: Valid, *data: Any) -> pa.Array:
    has_nulls = valid is not None and not valid.all()
    validity = pa.py_buffer(_bits(valid)) if has_nulls and valid is not None else None
    return pa.Array.from_buffers(type_, size, [validity, *map(pa.py_buffer, data)])


def _bits(values: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """As Arrow has them: the first value is the lowest bit."""
    return np.packbits(values, bitorder="little")
