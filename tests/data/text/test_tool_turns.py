"""Turns as JSON: schemas of tools of every form, and conversations whose calls are over."""

import pytest

from bedstone.data.text.tool_turns import as_plain, turn_schema

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def tool(parameters):
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"$ref": "#/$defs/A", "$defs": {"A": {"type": "object", "required": ["x"],
                                              "properties": {"x": {"type": "integer"}}}}},
        {"anyOf": [{"type": "object", "required": ["x"], "properties": {"x": {"type": "string"}}}]},
        {"type": "object", "properties": {"a": {"type": "integer"},
                                          "b": {"$ref": "#/properties/a"}}},
        {"type": "object", "properties": {"next": {"$ref": "#"}}},
    ],
)  # fmt: skip
def test_schemas_of_every_form_can_be_followed(parameters):
    pytest.importorskip("llguidance")
    import jsonschema

    made = turn_schema([tool(parameters), tool({"type": "object"})])
    jsonschema.Draft202012Validator.check_schema(made)
    argument = {"x": 1} if "$ref" in parameters else {"x": "1"} if "anyOf" in parameters else {}
    jsonschema.validate({"tool": "f", "arguments": argument}, made)


def test_a_conversation_whose_calls_are_over():
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "7"},
        {"role": "assistant", "content": "It is 7."},
        {"role": "user", "content": "thanks"},
    ]
    plain = as_plain(messages)
    assert [(each["role"], each["content"]) for each in plain] == [
        ("user", "go"),
        ("assistant", '{"tool": "f", "arguments": {"a": 1}}'),
        ("user", "Result of f: 7"),
        ("assistant", "It is 7."),
        ("user", "thanks"),
    ]
