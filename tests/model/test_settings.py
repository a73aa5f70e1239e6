"""`rerank.json` as it may be after somebody edited it."""

import json
from pathlib import Path

import pytest

from rerank_plugin import __version__
from rerank_plugin.errors import InputError
from rerank_plugin.model.settings import RerankSettings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected a JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"max_length": "512"}', "'max_length' must be a whole number above 0"),
        ('{"max_length": true}', "'max_length' must be"),
        ('{"max_length": 64.5}', "'max_length' must be"),
        ('{"max_length": -1}', "'max_length' must be"),
        ('{"normalize": "softmax"}', "'normalize' must be one of sigmoid, none, calibrated"),
        ('{"normalize": ["none"]}', "'normalize' must be"),
        ('{"schema_version": 2}', "unknown schema_version 2, written by rerank-plugin a newer"),
        ('{"schema_version": "x"}', "unknown schema_version 'x'"),
        ('{"thresholds": {"a": NaN}}', "'thresholds' must be"),
        ('{"thresholds": {"a": Infinity}}', "'thresholds' must be"),
        ('{"thresholds": {"a": 1' + "0" * 400 + "}}", "'thresholds' must be"),
        ('{"thresholds": {"a": true}}', "'thresholds' must be"),
        ('{"thresholds": [0.5]}', "'thresholds' must be"),
        ('{"calibration": {"scale": 1, "bias": NaN}}', "'calibration' must be"),
        ('{"calibration": [1, 0]}', "'calibration' must be"),
        ('{"dtype": "float16"}', "'dtype' must be int8"),
        ('{"dtype": 8}', "'dtype' must be int8"),
        ('{"quantization": 8}', "'quantization' must be an object"),
        ('{"base_model": 3}', "'base_model' must be a string"),
        ('{"data": "train.jsonl"}', "'data' must be an object"),
        ('{"options": []}', "'options' must be an object"),
    ],
)
def test_invalid_settings_are_errors(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rerank.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        RerankSettings.read(tmp_path)
    assert str(tmp_path / "rerank.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_null_and_unknown_entries_are_ignored(tmp_path: Path) -> None:
    text = '\ufeff{"max_length": 64, "normalize": null, "thresholds": null, "of_tomorrow": [1]}'
    (tmp_path / "rerank.json").write_text(text, encoding="utf-8")
    assert RerankSettings.read(tmp_path) == RerankSettings(max_length=64)


def test_the_file_has_the_versions_of_its_schema_and_of_the_package(tmp_path: Path) -> None:
    settings = RerankSettings(max_length=64)
    settings.write(tmp_path)
    record = json.loads((tmp_path / "rerank.json").read_text(encoding="utf-8"))
    assert list(record)[:2] == ["schema_version", "rerank_plugin_version"]
    assert (record["schema_version"], record["rerank_plugin_version"]) == (1, __version__)
    assert RerankSettings.read(tmp_path) == settings
