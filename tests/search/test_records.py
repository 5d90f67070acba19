"""What a search remembers of its trials."""

from dataclasses import replace

import pytest
from tiny_searches import rows_of

from kpipe.search.records import Record, read_records, write_record

METHODS = (["search.trials=5"], ["search.method=hyperband", "search.factor=2", "training.epochs=4"])


@pytest.mark.parametrize("method", METHODS, ids=["random", "hyperband"])
@pytest.mark.parametrize("damage", ["cut", "gone", "another format", "not an object", "two of them"])
def test_damaged_records_are_found_again(kpipe, experiment, search, trained, damage, method):
    command = ("search", experiment, *method)
    kpipe(*command)
    before = {number: replace(record, ended=None) for number, record in read_records(search()).items()}
    paths = sorted((search() / "trials").iterdir())
    for path in paths if damage != "two of them" else (paths[2], paths[-2]):
        text = path.read_text()
        new = {"cut": text[: len(text) // 2], "another format": text.replace('"format": 1', '"format": 99')}
        path.unlink() if damage == "gone" else path.write_text(new.get(damage, "[]"))
    for name in ("summary.json", "trials.csv", "config.yaml", "best.yaml"):
        (search() / name).write_text("{")
    done = len(trained)
    code, out, _ = kpipe(*command)
    assert (code, len(trained)) == (0, done)  # their runs are finished
    assert {number: replace(record, ended=None) for number, record in read_records(search()).items()} == before
    assert len(rows_of(search())) == len(before)


def test_records_are_written_and_read(tmp_path):
    (tmp_path / "trials").mkdir()
    record = Record(3, {"a": 1, "tuner/epochs": 2}, {"a.b": [1, "x"]}, "finished", 0.5, [0.4, 0.6], 0.1, 2, 3.5, 1)
    write_record(tmp_path, record)
    (tmp_path / "trials" / "0004.json").write_text((tmp_path / "trials" / "0003.json").read_text())  # a copy
    assert read_records(tmp_path) == {3: record}
