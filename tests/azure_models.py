"""The models of Azure's SDK, asked which fields there are."""

from __future__ import annotations

import functools
from typing import Any


def unknown_field(body: dict[str, Any], model: Any, where: str) -> str:
    """Return the first field that a model, or one of those within, does not have; empty if all are known.

    Parameters
    ----------
    body : dict
        What is sent.
    model : type
        What it is to be.
    where : str
        What that is called.
    """
    model()  # it reads its own fields when the first is made
    fields = {field._rest_name: field for field in model._attr_to_rest_field.values()}
    for key, value in body.items():
        if key not in fields:
            return f"{where}.{key}"
        inner = _model_of(fields[key]._type)
        for one in value if isinstance(value, list) else [value]:
            if inner is not None and (found := unknown_field(one, inner, f"{where}.{key}")):
                return found
    return ""


def _model_of(kind: Any) -> Any:
    """Return the model that a field is of, through what reads it; None for plain values and for maps."""
    if getattr(kind, "_is_model", False):
        return kind
    if isinstance(kind, functools.partial) and "dict" not in kind.func.__name__:
        return next((found for one in kind.args if (found := _model_of(one)) is not None), None)
    return None
