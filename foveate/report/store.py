"""Results on disk: plain numbers go to results.json, arrays to results.npz, and both come back equal."""

import hashlib
import io
import json
import types
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.errors import FoveateError
from foveate.files import write_atomic
from foveate.report.results import Results

VERSION = 1


def to_dict(results: Results) -> dict[str, Any]:
    """Nested dictionaries and lists with the same keys as the dataclasses; arrays stay numpy arrays."""
    return _plain(results)


def from_dict(form: Mapping[str, Any]) -> Results:
    """The Results that `to_dict` took apart; keys may be missing where the dataclass has a default.

    Raises FoveateError for unknown or missing keys and for values of another type.
    """
    return _built(Results, form, "results")


def save_results(folder: str | Path, results: Results) -> None:
    """Write results.json and results.npz into `folder`; a reader sees the old pair, the new pair or an error, never a mixture."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    form = _without_arrays(to_dict(results), arrays, "")
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)
    write_atomic(folder / "results.npz", lambda path: path.write_bytes(packed.getvalue()))
    text = json.dumps({"version": VERSION, "arrays": _digest(packed.getvalue()), "results": form}, indent=1)
    write_atomic(folder / "results.json", lambda path: path.write_text(text, encoding="utf-8"))


def load_results(folder: str | Path) -> Results:
    """Read what `save_results` wrote; raises FoveateError where files are missing, damaged, newer or do not belong together."""
    folder = Path(folder)
    for name in ("results.json", "results.npz"):
        if not (folder / name).is_file():
            raise FoveateError(
                given=f"{folder}, which has no {name}",
                allowed="a run folder with results.json and results.npz",
                do="measure first: `foveate demo`, or `foveate bench RUN --out RUN`",
            )
    packed = (folder / "results.npz").read_bytes()
    try:
        form = json.loads((folder / "results.json").read_text())
        version = form["version"]
        if version == VERSION and form["arrays"] != _digest(packed):
            raise ValueError("results.npz belongs to another results.json")
        if version == VERSION:
            with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
                return from_dict(_with_arrays(form["results"], arrays))
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise FoveateError(
            given=f"{folder} with results that cannot be read ({str(error).splitlines()[0]})",
            allowed="results.json and results.npz as one run wrote them",
            do="run the measurement again; it writes both anew",
        ) from error
    raise FoveateError(f"results of version {version} in {folder}", f"version {VERSION}", "read them with a newer foveate")


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


def _without_arrays(form: Any, arrays: dict[str, np.ndarray], place: str) -> Any:
    """`form` with every array moved into `arrays` and replaced by {"npz": its key}."""
    if isinstance(form, np.ndarray):
        arrays[place] = form
        return {"npz": place}
    if isinstance(form, dict):
        return {key: _without_arrays(one, arrays, f"{place}.{key}".lstrip(".")) for key, one in form.items()}
    if isinstance(form, list):
        return [_without_arrays(one, arrays, f"{place}.{index}") for index, one in enumerate(form)]
    return form


def _with_arrays(form: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(form, dict):
        return arrays[form["npz"]] if set(form) == {"npz"} else {k: _with_arrays(v, arrays) for k, v in form.items()}
    return [_with_arrays(one, arrays) for one in form] if isinstance(form, list) else form


def _built(kind: Any, value: Any, place: str) -> Any:
    """`value` as an instance of the annotation `kind`; the dataclasses above are the only schema."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is types.UnionType:
        return None if value is None else _built(arguments[0], value, place)
    if is_dataclass(kind):
        return _built_dataclass(kind, value, place)
    if kind is np.ndarray:
        return np.asarray(value)
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inner) == len(value):
            return tuple(_built(one, part, f"{place}[{i}]") for i, (one, part) in enumerate(zip(inner, value)))
    elif origin is dict and isinstance(value, Mapping):
        return {arguments[0](key): _built(arguments[1], part, f"{place}[{key}]") for key, part in value.items()}
    elif isinstance(kind, type) and isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool):
        return value
    raise FoveateError(f"{place} = {value!r}"[:200], f"a value of type {kind}", "correct that entry of the results")


def _built_dataclass(kind: type, value: Any, place: str) -> Any:
    if isinstance(value, kind):
        return value
    known = typing.get_type_hints(kind)
    if not isinstance(value, Mapping) or set(value) - set(known):
        wrong = f"the unknown keys {sorted(set(value) - set(known))}" if isinstance(value, Mapping) else f"{type(value).__name__}"
        raise FoveateError(f"{place} with {wrong}", f"the keys {', '.join(known)}", "correct that entry of the results")
    try:
        return kind(**{name: _built(known[name], part, f"{place}.{name}") for name, part in value.items()})
    except TypeError as error:
        raise FoveateError(f"{place}: {error}", f"the keys {', '.join(known)}", "add what is missing") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
