"""What a search remembers of its trials."""

from dataclasses import replace

import pytest
from tiny_searches import rows_of

from kpipe.config.space import Dimension
from kpipe.tuning.hparams import write_session, write_space
from kpipe.tuning.records import Record, read_records, write_record, write_trials

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
    for name in ("search.json", "trials.csv", "search.yaml", "best.yaml"):
        (search() / name).write_text("{")
    done = len(trained)
    code, out, _ = kpipe(*command)
    assert (code, len(trained)) == (0, done)  # their runs are finished
    assert {number: replace(record, ended=None) for number, record in read_records(search()).items()} == before
    assert len(rows_of(search())) == len(before)


def test_hostile_values_reach_no_table_and_no_hparams_raw(tmp_path):
    (tmp_path / "trials").mkdir()
    source = "folder:/caf\udce9\n\x1b[2J,x"
    record = Record(1, {}, {"data.source": source}, "finished", 0.5, [0.5], 0.1, 1, 1.0, ended=1.0)
    write_record(tmp_path, record)
    assert read_records(tmp_path) == {1: record}
    write_trials(tmp_path / "trials.csv", [record], "val_accuracy", ["data.source"])
    shown = r"folder:/caf\xe9\n\x1b[2J,x"
    assert [row["data.source"] for row in rows_of(tmp_path)] == [shown]
    write_space(tmp_path, [Dimension("data.source", "data.source", "choice", (source, "digits"))], "val_accuracy")
    write_session(tmp_path, record)
    for folder in (tmp_path, tmp_path / record.run()):
        [events] = folder.glob("events.out.*")
        assert shown.encode() in events.read_bytes()


def test_records_are_written_and_read(tmp_path):
    (tmp_path / "trials").mkdir()
    record = Record(3, {"a": 1, "tuner/epochs": 2}, {"a.b": [1, "x"]}, "finished", 0.5, [0.4, 0.6], 0.1, 2, 3.5, 1)
    write_record(tmp_path, record)
    (tmp_path / "trials" / "0004.json").write_text((tmp_path / "trials" / "0003.json").read_text())  # a copy
    assert read_records(tmp_path) == {3: record}
