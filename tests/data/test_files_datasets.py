"""Data set folders through the `datasets` library, and data sets of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xwin.data.files import Table, named_tables
from xwin.errors import DataError

datasets = pytest.importorskip("datasets")

ROWS: list[dict[str, Any]] = [{"id": f"r{i}", "messages": [{"role": "user", "content": "é"}], "score": None if i else 0.5} for i in range(150)]


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def read(source: str, tmp_path: Path) -> Table:
    (found,) = named_tables(source, cache=tmp_path / "cache")
    return found


def test_a_saved_data_set_gives_its_rows(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for source in (f"{tmp_path}/saved", f"hf:{tmp_path}/saved"):
        assert [row.value for row in read(source, tmp_path)] == ROWS
    with pytest.raises(DataError, match="has no splits"):
        read(f"{tmp_path}/saved:train", tmp_path)


def test_a_saved_data_set_with_splits_needs_one_named(tmp_path: Path) -> None:
    parts = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert [row.value for row in read(f"{tmp_path}/saved:test", tmp_path)] == ROWS[:2]
    with pytest.raises(DataError, match="train, test") as caught:
        read(f"{tmp_path}/saved", tmp_path)
    assert caught.value.fix == f"name one: {tmp_path}/saved:train"
    with pytest.raises(DataError, match="no split 'valid'"):
        read(f"{tmp_path}/saved:valid", tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_folder_of_files_is_a_data_set_with_a_split_for_each_name(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, rows in (("train", ROWS), ("test", ROWS[:3])):
        made = datasets.Dataset.from_list([{"id": row["id"], "text": "a,b\nc"} for row in rows])
        {"jsonl": made.to_json, "parquet": made.to_parquet, "csv": made.to_csv}[kind](str(folder / f"{name}.{kind}"))
    assert [row.value for row in read(f"{folder}:test", tmp_path)] == [{"id": row["id"], "text": "a,b\nc"} for row in ROWS[:3]]
    assert len(read(f"{folder}:train", tmp_path)) == len(ROWS)


@pytest.mark.parametrize("named", ["../secret.jsonl", "{folder}/../secret.jsonl", "{outside}"])
def test_a_folder_whose_card_names_files_elsewhere_is_refused(named: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "secret.jsonl"
    folder.mkdir()
    outside.write_text(json.dumps(ROWS[0]))
    (folder / "train.jsonl").write_text(json.dumps(ROWS[1]))
    name = named.format(folder=folder, outside=outside)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {name}\n---\n")
    with pytest.raises(DataError, match="secret") as caught:
        read(f"{folder}", tmp_path)
    assert "outside" in caught.value.what


def test_a_saved_data_set_whose_state_names_files_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("saved", "other"):
        datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / name))
    state = tmp_path / "saved" / "state.json"
    state.write_text(state.read_text().replace('"data-00000', '"../other/data-00000'))
    with pytest.raises(DataError, match="names a file outside its folder"):
        read(f"{tmp_path}/saved", tmp_path)


def test_a_program_beside_the_data_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(ROWS[1]))
    (folder / "folder.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        read(f"{folder}", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_the_digest_of_a_folder_follows_its_content_and_the_split(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(ROWS[0]))
    first = read(f"{folder}:train", tmp_path).digest
    assert read(f"{folder}", tmp_path).digest != first
    (folder / "train.jsonl").write_text(json.dumps(ROWS[1]))
    again = read(f"{folder}:train", tmp_path)
    assert again.digest != first
    assert again[0].value == ROWS[1]


def test_a_folder_that_changes_while_it_is_copied_stops_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xwin.data.files as files

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(ROWS[0]))
    real = files.dataset_rows

    def meddle(*given: Any) -> Any:
        yield from real(*given)
        (folder / "train.jsonl").write_text(json.dumps(ROWS[1]))

    monkeypatch.setattr(files, "dataset_rows", meddle)
    with pytest.raises(DataError, match="changed while it was read"):
        read(str(folder), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_the_library_cannot_read_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    for name, text in (("broken.jsonl", '{"a": 1}\n{"a":\n'), ("broken.parquet", "PAR1....")):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(DataError, match="the data set cannot be read"):
            read(str(folder), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="folder without files"):
        read(str(tmp_path / "empty"), tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_data_set_of_the_hub_that_cannot_be_had_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("hf:nobody/has-this", "hf:nobody/has-this@main:train"):
        with pytest.raises(DataError, match="hub cannot be reached"):
            read(source, tmp_path)
    with pytest.raises(DataError, match="no such data set"):
        read("hf:not a name", tmp_path)


def test_a_data_set_of_the_hub_may_be_a_folder_of_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as the hub's client keeps it on disk, with two data sets in folders of their own; no network is used."""
    revision = "0" * 40
    cache = tmp_path / "datasets--owner--name"
    for name in ("first", "second"):
        folder = cache / "snapshots" / revision / name
        folder.mkdir(parents=True)
        (folder / "train-00000-of-00001.jsonl").write_text(json.dumps({"question": name, "answer": "#### 1"}) + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (row,) = read(f"hf:owner/name/second@{revision}:train", tmp_path)
    assert row.value["question"] == "second"
    with pytest.raises(DataError, match="no folder 'third'"):
        read(f"hf:owner/name/third@{revision}:train", tmp_path)
