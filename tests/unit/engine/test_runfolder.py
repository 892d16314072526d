from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from engine.runfolder import EventWriter, ResultsTable, RunFolder


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_term_that_appears_later_gets_its_column(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table.add({"epoch": 0, "train/box": 0.123456789})
    table.add({"epoch": 1, "train/box": 0.1, "train/kd/fgd/P3": 2.0})
    rows = read(tmp_path / "results.csv")
    assert rows[0] == {"epoch": "0", "train/box": "0.123457", "train/kd/fgd/P3": ""}
    assert rows[1]["train/kd/fgd/P3"] == "2"


def test_resume_drops_rows_of_the_unfinished_epoch(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    for epoch in range(3):
        table.add({"epoch": epoch, "x": float(epoch)})
    again = ResultsTable(tmp_path / "results.csv")
    again.resume(2)
    again.add({"epoch": 2, "x": 9.0})
    assert [row["x"] for row in read(tmp_path / "results.csv")] == ["0", "1", "9"]


def test_folders_count_up(tmp_path: Path) -> None:
    assert [RunFolder.create(str(tmp_path), "exp", False).path.name for _ in range(3)] == ["exp", "exp2", "exp3"]
    assert RunFolder.create(str(tmp_path), "exp", True).path.name == "exp"


def test_manifest_and_yaml(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "exp")
    run.write_yaml("opt.yaml", {"b": (1, 2), "a": {"c": None}})
    run.write_manifest({"seed": 3, "teacher": {"sha256": "ab"}})
    assert yaml.safe_load((run.path / "opt.yaml").read_text()) == {"b": [1, 2], "a": {"c": None}}
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["seed"] == 3
    assert set(manifest["versions"]) >= {"torch", "numpy", "python"}


# A results table that somebody or something has damaged

GOOD = ["epoch,train/box,metrics/AP", "0,0.5,0.1", "1,0.4,0.2", "2,0.3,0.3"]
DAMAGES: dict[str, tuple[bytes | None, list[int]]] = {
    "whole": ("\n".join([*GOOD, ""]).encode(), [0, 1, 2]),
    "cut in its last row": ("\n".join(GOOD)[:-4].encode(), [0, 1]),
    "cut in its last number": ("\n".join(GOOD)[:-1].encode(), [0, 1]),
    "garbage": (bytes(range(1, 256)) * 12, []),
    "garbage in a row": ("\n".join([*GOOD, ""]).encode().replace(b"0.4", b"\xff\0\xfe"), [0, 2]),
    "zeros": (bytes(3000), []),
    "a lone quote": ("\n".join([*GOOD, ""]).replace("0.4", '"0.4').encode(), [0, 2]),
    "another name of epoch": ("\n".join([*GOOD, ""]).replace("epoch", "epohc").encode(), []),
    "epoch twice": ("\n".join([*GOOD, ""]).replace("train/box", "epoch").encode(), []),
    "text as epoch": ("\n".join([*GOOD, ""]).replace("\n0,", "\nzero,").encode(), [1, 2]),
    "a huge epoch": ("\n".join([*GOOD, ""]).replace("\n0,", "\n" + "9" * 5000 + ",").encode(), [1, 2]),
    "text as number": ("\n".join([*GOOD, ""]).replace("0.4", "low").encode(), [0, 2]),
    "more cells": ("\n".join([*GOOD, ""]).replace("0.2", "0.2,9,9").encode(), [0, 2]),
    "fewer cells": ("\n".join([*GOOD, ""]).replace("1,0.4,0.2", "1").encode(), [0, 2]),
    "another order": ("\n".join([GOOD[0], GOOD[3], GOOD[1], GOOD[2], ""]).encode(), [0, 1, 2]),
    "a row twice": ("\n".join([*GOOD, GOOD[2], ""]).encode(), [0, 1, 2]),
    "spaces, empty lines": (
        "\r\n\r\n".join(["\ufeff" + GOOD[0], *GOOD[1:], ""]).replace(",", ", ").encode(),
        [0, 1, 2],
    ),
    "a first line only": (GOOD[0].encode() + b"\n", []),
    "nothing": (b"", []),
    "gone": (None, []),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_does_not_end_a_training(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    content, kept = DAMAGES[damage]
    table = ResultsTable(tmp_path / "results.csv")
    if content is not None:
        table.path.write_bytes(content)
    table.resume(3)
    table.add({"epoch": 3, "train/box": 0.25})
    assert [row["epoch"] for row in read(table.path)] == [*map(str, kept), "3"]
    assert all(row["train/box"] in ("0.5", "0.4", "0.3", "0.25") for row in read(table.path))
    whole = kept == [0, 1, 2] and damage != "a row twice"
    assert len(caplog.records) == (not whole), caplog.text
    assert all("\n" not in record.message and record.message.isprintable() for record in caplog.records)
    aside = tmp_path / "results.csv.damaged"
    assert (
        not aside.exists()
        if whole or content in (None, DAMAGES["a first line only"][0])
        else aside.read_bytes() == content
    )


def test_a_folder_or_a_huge_file_in_place_of_the_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table.path.mkdir()
    table.resume(1)
    with open(table.path, "wb") as stream:
        stream.truncate(1 << 40)  # takes no room
    table.resume(1)
    table.add({"epoch": 1, "x": 1.0})
    assert [row["x"] for row in read(table.path)] == ["1"]
    assert (tmp_path / "results.csv.damaged").is_dir() and (tmp_path / "results.csv.damaged2").is_file()
    assert len(caplog.records) == 2


def test_a_table_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = ResultsTable(tmp_path / "results.csv")
    table.path.mkdir()
    for epoch in range(3):
        table.add({"epoch": epoch, "x": 1.0})
    assert len(caplog.records) == 1 and "the training goes on" in caplog.text
    table.path.rmdir()
    table.add({"epoch": 3, "x": 1.0})
    assert len(read(table.path)) == 4, "all rows are written once they can be"


def test_without_a_place_for_events_the_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    events = EventWriter(tmp_path / "file" / "run")
    events.add({"epoch": 0, "x": 1.0}, 0)
    events.close()
    assert "no TensorBoard events" in caplog.text


def test_facts_are_added_to_the_manifest_whatever_is_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "exp")
    for content in (None, b"", b"[1]", b"\xff", b"[" * 100_000):
        if content is not None:
            (run.path / "manifest.json").write_bytes(content)
        run.update_manifest({"a": 1, "b": (2,)})
        run.update_manifest({"a": None})
        assert run.manifest() == {"b": [2]}
