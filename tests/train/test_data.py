"""What the record of a model says of the data that it learnt from, for every evaluation alike."""

import json

import pytest

from bedstone.data.open import ImageTextConfig, PairsConfig
from bedstone.data.signals.signals import SignalsConfig
from bedstone.data.sources import DataConfig
from bedstone.errors import BedstoneError
from bedstone.train.data import recorded_columns, recorded_data

KINDS = (DataConfig, PairsConfig, ImageTextConfig, SignalsConfig)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "record", [{}, {"recipe": None}, {"recipe": "a"}, {"recipe": {}}, {"recipe": {"data": []}}]
)
def test_a_record_without_data_has_the_defaults(kind, record, tmp_path):
    assert recorded_data(kind, record) == kind()
    assert recorded_columns(record, str(tmp_path / "none.csv")) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_section_is_read_as_far_as_its_fields_are_known(kind):
    record = {"recipe": {"data": {"source": "rows.csv", "of another version": 1}}}
    assert recorded_data(kind, record) == kind(source="rows.csv")
    with pytest.raises(BedstoneError, match=r"recipe\.data\.source"):
        recorded_data(kind, {"recipe": {"data": {"source": [1]}}})


def test_columns_are_those_given_then_those_recorded_where_the_data_has_them(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"body": "a", "stars": 1}))
    known = {"text": "body", "label": "kind", "pair": "{body} of {stars}"}
    record = {"recipe": {"data": {"columns": known}}}
    own = {"text": "body", "pair": known["pair"]}
    assert recorded_columns(record, str(path)) == own
    assert recorded_columns(record, str(path), {"label": "stars"}) == {**own, "label": "stars"}
    assert recorded_columns(record, "scenes") == {}
    assert recorded_columns({"recipe": {"data": {"columns": ["text"]}}}, str(path)) == {}
