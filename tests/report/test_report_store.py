"""report/store.py: results survive the disk, and nothing half-written or foreign is taken for results."""

import json
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.report import Results, from_dict, load_results, save_results, to_dict


def same(one, other):
    """Equality through dataclasses, dictionaries, tuples and arrays (dtype included)."""
    assert type(one) is type(other)
    if is_dataclass(one):
        for item in fields(one):
            same(getattr(one, item.name), getattr(other, item.name))
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            same(left, right)
    else:
        assert one == other


def test_results_come_back_equal_from_disk(results, tmp_path):
    save_results(tmp_path / "run", results)
    same(load_results(tmp_path / "run"), results)


def test_results_come_back_equal_from_a_dictionary(results):
    same(from_dict(to_dict(results)), results)
    assert from_dict({"title": "bare"}) == Results("bare")


def test_numbers_are_readable_json_and_arrays_are_not_in_it(results, tmp_path):
    save_results(tmp_path, results)
    text = (tmp_path / "results.json").read_text()
    form = json.loads(text)["results"]
    assert form["rows"][1]["speedup"]["16"] == [1.6, 1.55, 1.65]
    assert form["grids"][0]["images"] == {"npz": "grids.0.images"}
    with np.load(tmp_path / "results.npz", allow_pickle=False) as arrays:
        assert arrays["grids.0.kept.1"].shape == (3, 4)


def test_saving_again_replaces_both_and_leaves_nothing_beside_them(results, tmp_path):
    save_results(tmp_path, results)
    save_results(tmp_path, Results("second"))
    assert load_results(tmp_path) == Results("second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.npz"]


def refused(folder, *words):
    with pytest.raises(FoveateError) as caught:
        load_results(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.do and caught.value.allowed


def test_missing_truncated_mixed_and_newer_results_are_refused(results, tmp_path):
    refused(tmp_path, "no results.json", "foveate demo")
    save_results(tmp_path, results)
    json_path, npz_path = tmp_path / "results.json", tmp_path / "results.npz"
    text, data = json_path.read_text(), npz_path.read_bytes()
    npz_path.write_bytes(data[: len(data) // 2])
    refused(tmp_path, "belongs to another results.json")
    npz_path.write_bytes(data)
    json_path.write_text(text[: len(text) // 2])
    refused(tmp_path, "cannot be read")
    json_path.write_text(text.replace('"version": 1', '"version": 9', 1))
    refused(tmp_path, "version 9", "newer foveate")
    json_path.write_text("[]")
    refused(tmp_path, "cannot be read")


@pytest.mark.parametrize(
    "form, word",
    [
        ({}, "title"),
        ({"title": 3}, "results.title = 3"),
        ({"title": "x", "colour": "red"}, "colour"),
        ({"title": "x", "rows": [{"plan": "p", "macs": "many", "params": 1}]}, "results.rows[0].macs = 'many'"),
        ({"title": "x", "rows": [{"plan": "p", "macs": 1.0}]}, "params"),
        ({"title": "x", "grids": 4}, "results.grids = 4"),
        ({"title": "x", "made": []}, "list"),
    ],
)
def test_a_dictionary_of_another_shape_is_refused_by_name(form, word):
    with pytest.raises(FoveateError) as caught:
        from_dict(form)
    assert word in str(caught.value)
