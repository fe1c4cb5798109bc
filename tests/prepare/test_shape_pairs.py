"""The packed format: what is written comes back, damage is told, rows are taken out with their indices following."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prepare.errors import InputError, UsageError
from prepare.shape_pairs import PairSizes, PairWriter, ShapePairs, cell_share

SIZES = PairSizes(shapes=3, views=2, queries=6, points=4, px=32)


def filled(folder, sizes=SIZES):
    writer = PairWriter(folder, sizes)
    rng = np.random.default_rng(0)
    for name, (dtype, shape) in sizes.arrays().items():
        array = writer.array(name)
        array[:] = rng.random(shape) if dtype.startswith("float") else rng.integers(0, 2, shape)
    for row in range(sizes.queries):
        anomalous = row % 2 == 0
        writer.put(
            row,
            query_shape=row // 2,
            query_label=int(anomalous),
            query_type=3 if anomalous else 0,
            query_twin=row + 1 if anomalous else -1,
        )
    return writer


def finish(writer, **changes):
    return writer.finish(
        up="y",
        shapes=["a", "b", "c"],
        splits={"train": [0], "val": [2], "test": [1]},
        parts=["Leg", "Arm"],
        source={"made_by": "test"},
        **changes,
    )


def test_what_is_put_comes_back_and_splits_pick_their_shapes_photos(tmp_path):
    writer = filled(tmp_path / "p")
    expected = {name: np.array(writer.array(name)) for name in SIZES.arrays()}
    pairs = finish(writer)
    assert not (tmp_path / "p.partial").exists()
    for name, rows in expected.items():
        np.testing.assert_array_equal(getattr(pairs, name), rows)
        assert not getattr(pairs, name).flags.writeable
    assert pairs.shapes == ("a", "b", "c")
    assert pairs.queries_of("val").tolist() == [4, 5]
    assert pairs.queries_of("test").tolist() == [2, 3]
    assert pairs.aided is None
    assert (pairs.has_aided, pairs.view_count, pairs.px, pairs.columns) == (False, 2, 32, 4)
    assert pairs["query_box"] is pairs.query_box
    with pytest.raises(InputError, match="no split dev; there are train, val, test"):
        pairs.queries_of("dev")
    assert {p.name for p in (tmp_path / "p").iterdir()} == {*(f"{n}.npy" for n in expected), "pack.json"}


def test_a_damaged_row_goes_and_indices_follow(tmp_path):
    writer = filled(tmp_path / "p")
    keep_shapes, keep_queries = np.array([True, False, True]), np.ones(6, bool)
    keep_queries[5] = False  # the twin of 4
    views = np.array(writer.array("views"))
    pairs = finish(writer, keep_shapes=keep_shapes, keep_queries=keep_queries)
    assert pairs.shapes == ("a", "c")
    assert pairs.splits == {"train": (0,), "val": (1,), "test": ()}
    assert pairs.query_shape.tolist() == [0, 0, 1]
    assert pairs.query_twin.tolist() == [1, -1, -1]
    np.testing.assert_array_equal(pairs.views, views[[0, 2]])


def test_a_stopped_writer_goes_on_and_one_of_other_sizes_is_refused(tmp_path):
    writer = filled(tmp_path / "p")
    writer.mark("shape-1", "note")
    again = PairWriter(tmp_path / "p", SIZES)
    assert (again.done("shape-1"), again.done("shape-2"), again.note("shape-1")) == (True, False, "note")
    np.testing.assert_array_equal(again.array("queries"), writer.array("queries"))
    with pytest.raises(UsageError, match="other sizes"):
        PairWriter(tmp_path / "p", PairSizes(3, 2, 7, 4, 32))
    finish(again)
    with pytest.raises(UsageError, match="is there already"):
        PairWriter(tmp_path / "p", SIZES)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "pack.json").unlink(), "splatad generate chairs"),
        (lambda f: (f / "views.npy").unlink(), "views.npy: is not there"),
        (lambda f: (f / "views.npy").write_bytes(b"\x93NUMPY"), "views.npy: cannot be read"),
        (lambda f: np.save(f / "query_box.npy", np.zeros((6, 4))), "query_box.npy: float32"),
        (lambda f: np.save(f / "query_shape.npy", np.full(6, 3, np.int32)), "query_shape.npy: values from 0 to 2"),
        (lambda f: np.save(f / "query_label.npy", np.zeros(6, np.uint8)), "labels and types disagree"),
        (lambda f: edit(f, splits={"train": [0, 1], "val": [1], "test": [2]}), "in two splits"),
        (lambda f: edit(f, splits={"train": [0, 7], "val": [1], "test": [2]}), "below 3"),
        (lambda f: edit(f, format=2), "format 1 is wanted, got 2"),
        (lambda f: edit(f, px="256"), "px must be a whole number"),
    ],
)  # fmt: skip
def test_a_damaged_set_is_told_in_one_line(tmp_path, damage, words):
    finish(filled(tmp_path / "p"))
    damage(tmp_path / "p")
    with pytest.raises(InputError, match=words):
        ShapePairs.open(tmp_path / "p")


def edit(folder, **values):
    path = folder / "pack.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_cell_share_is_the_covered_share_of_each_cell():
    mask = np.zeros((16, 16), bool)
    mask[:8, 8:12] = True
    mask[15, 0] = True
    np.testing.assert_array_equal(cell_share(mask), [[0, 128], [4, 0]])
