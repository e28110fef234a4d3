"""What the API says about itself: complete, true, and readable without another host."""

import csv
import io
import json
import re
from typing import Any

import httpx
import pytest


@pytest.fixture
def document(proxy: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = proxy.get("/openapi.json").json()
    return document


def test_errors_are_described_as_problems(document: dict[str, Any]) -> None:
    assert not [path for path in document["paths"] if path.endswith("z")]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert "ProblemDocument" in document["components"]["schemas"]
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                problem = "application/problem+json" in response.get("content", {})
                assert problem == (int(status) >= 400)
                if status in ("429", "502", "503", "504"):
                    assert "Retry-After" in response["headers"]


def test_every_operation_has_words_and_every_answer_an_example(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert operation["description"], path
            bodies = [operation["requestBody"]] if "requestBody" in operation else []
            for body in (*bodies, *operation["responses"].values()):
                for content in body.get("content", {}).values():
                    assert _has_example(content, schemas), (path, content)


def test_every_parameter_has_words_and_an_example(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                name = (path, parameter["name"])
                assert parameter.get("description"), name
                schema = parameter["schema"]
                assert "examples" in parameter or "examples" in schema, name


def test_the_examples_of_files_and_pages_are_true(
    proxy: httpx.Client, document: dict[str, Any]
) -> None:
    paths = document["paths"]
    files = paths["/predictions/export"]["get"]["responses"]["200"]["content"]
    example = json.loads(files["application/jsonl"]["example"])
    proxy.post("/predictions", json={"text": example["text"]})
    assert proxy.get("/predictions/export?format=jsonl").json().keys() == example.keys()
    [line] = csv.DictReader(io.StringIO(files["text/csv"]["example"]))
    assert line["text"] == example["text"]
    header = proxy.get("/predictions/export").text.splitlines()[0]
    assert files["text/csv"]["example"].splitlines()[0] == header
    [cursor] = (
        item for item in paths["/predictions"]["get"]["parameters"] if item["name"] == "cursor"
    )
    [cursor_example] = cursor["schema"]["examples"]
    assert proxy.get(f"/predictions?cursor={cursor_example}").json() == []


def test_probes_are_never_refused_for_too_many_requests(document: dict[str, Any]) -> None:
    for path in ("/health", "/ping"):
        assert document["paths"][path]["get"]["responses"].keys() == {"200", "500"}


def _has_example(content: dict[str, Any], schemas: dict[str, Any]) -> bool:
    if "example" in content:
        return True
    schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
    members = schema["properties"].values()
    return "examples" in schema or all("examples" in member for member in members)


def test_the_pages_files_come_from_the_proxy(proxy: httpx.Client) -> None:
    page = proxy.get("/docs")

    assert page.status_code == 200
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(addresses) == 3
    assert not [address for address in addresses if "//" in address]
    for address in addresses:
        found = proxy.get(f"/{address}")
        assert found.status_code == 200
        assert len(found.content) > 500
    assert proxy.get("/docs/index.html").status_code == 404
    assert proxy.get("/docs/..%2F__init__.py").status_code == 404
