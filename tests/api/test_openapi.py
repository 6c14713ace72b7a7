"""The API's own description: whole, true, and nothing that it allows makes the server fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema_rs import validator_for
from openapi_spec_validator import validate
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import KEY, Api
from tests.api.outside import assert_serves

OPEN = {"/health", "/api/v1/receipt-key", "/files/{key}", "/webhook/complete", "/metrics"}
"""No key of an owner is asked for: open, or with something of their own."""
EXAMPLES = 8
EVENTS = "GET /api/v1/jobs/{job_id}/events"
NOT_IMPLEMENTED = 501
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
STREAM_CHECKS = [check for check in CHECKS if check is not response_schema_conformance]
"""OpenAPI 3.1 can say of a stream that it is text, and no more."""


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    return httpx.get(f"{api.url}/openapi.json", trust_env=False).raise_for_status().json()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def example_path(path: str) -> str:
    for name in ("job_id", "batch_id", "video_id", "character_id", "model", "key", "code"):
        path = path.replace("{" + name + "}", "none")
    assert "{" not in path, path
    return path


def resolved(schema: Any, document: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "components": document["components"]}


# --- the document -----------------------------------------------------------------------------


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_both_documents_and_what_is_beyond_are_in_it(document: dict[str, Any]) -> None:
    found = {(method, path) for method, path, _ in operations(document)}
    assert found >= {
        ("POST", "/api/v1/generate"),
        ("GET", "/api/v1/jobs/{job_id}"),
        ("POST", "/api/v1/presign/upload"),
        ("GET", "/api/v1/presign/download/{job_id}"),
        ("POST", "/webhook/complete"),
        ("GET", "/health"),
        ("GET", "/api/v1/queue/stats"),
        ("POST", "/generate"),
        ("GET", "/status/{job_id}"),
        ("GET", "/api/v1/jobs"),
        ("POST", "/api/v1/jobs/{job_id}/cancel"),
        ("POST", "/api/v1/jobs/{job_id}/retry"),
        ("POST", "/api/v1/jobs/{job_id}/redeliver"),
        ("GET", "/api/v1/jobs/{job_id}/events"),
        ("DELETE", "/api/v1/jobs/{job_id}"),
        ("POST", "/api/v1/batches"),
        ("GET", "/api/v1/batches/{batch_id}"),
        ("POST", "/api/v1/estimate"),
        ("GET", "/api/v1/models"),
        ("GET", "/api/v1/styles"),
        ("GET", "/api/v1/usage"),
        ("POST", "/v1/videos"),
        ("GET", "/v1/videos"),
        ("GET", "/v1/videos/{video_id}"),
        ("GET", "/v1/videos/{video_id}/content"),
        ("DELETE", "/v1/videos/{video_id}"),
        ("GET", "/metrics"),
    }


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    silent = [
        f"{method} {path}"
        for method, path, operation in operations(document)
        if not (operation.get("summary") and operation.get("description"))
    ]
    assert silent == []


def test_every_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_every_operation_documents_its_errors(document: dict[str, Any]) -> None:
    wrong: list[str] = []
    for method, path, operation in operations(document):
        answers = operation["responses"]
        if path not in OPEN and not {"401", "422", "429", "503"} <= set(answers):
            wrong.append(f"{method} {path}: {', '.join(answers)}")
        kind = "application/json" if path.startswith("/v1/") else "application/problem+json"
        wrong += [
            f"{method} {path}: {status} is {', '.join(answer.get('content', ())) or 'nothing'}"
            for status, answer in answers.items()
            if status[0] in "45" and list(answer.get("content", ())) != [kind]
        ]
    assert wrong == []


def test_it_says_how_a_key_is_sent(document: dict[str, Any]) -> None:
    """Else no generated client sends one, and the docs page has no field for it."""
    schemes = document["components"]["securitySchemes"].values()
    kinds = {(s["type"], s.get("scheme", s.get("name", "")).lower()) for s in schemes}
    assert kinds >= {("http", "bearer"), ("apiKey", "x-api-key")}
    for method, path, operation in operations(document):
        wanted = operation.get("security", document.get("security", []))
        if path not in OPEN:
            assert wanted, (method, path)


def test_every_operation_but_the_open_ones_asks_for_a_key(
    api: Api, document: dict[str, Any]
) -> None:
    for method, path, _ in operations(document):
        told = httpx.request(method, api.url + example_path(path), json={}, trust_env=False)
        if path in OPEN:
            continue
        assert told.status_code == 401, (method, path, told.text)


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    count = 0
    for where, schema, example in examples(document):
        count += 1
        check = validator_for(resolved(schema, document))
        assert check.is_valid(example), (where, [str(e) for e in check.iter_errors(example)])
    assert count > 20


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    without: list[str] = []
    for method, path, operation in operations(document):
        for kind, body in operation.get("requestBody", {}).get("content", {}).items():
            if kind != "application/json":
                continue
            schema = body["schema"]
            name = schema.get("$ref", "").rpartition("/")[2]
            seen = document["components"]["schemas"].get(name, schema)
            fields = seen.get("properties", {}).values()
            if not (
                {"example", "examples"} & {*body, *seen}
                or any({"example", "examples"} & {*field} for field in fields)
            ):
                without.append(f"{method} {path}")
    assert without == []


def test_examples_of_orders_are_good_orders(api: Api, document: dict[str, Any]) -> None:
    """What a reader copies from the docs page is taken, but for addresses without a network."""
    for path in ("/api/v1/generate", "/generate", "/api/v1/estimate"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in [body["example"]] if "example" in body else found_examples(body, document):
            order = {k: v for k, v in example.items() if not k.endswith("_url")}
            told = api.client.post(path, json={"prompt": "a cat"} | order)
            assert told.status_code == 200, (path, example, told.text)


def examples(document: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every example of the document with the schema that it is one of."""
    for method, path, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            for kind, content in body.get("content", {}).items():
                if "json" in kind and "schema" in content:
                    for example in found_examples(content, document):
                        yield f"{method} {path}", content["schema"], example
    for name, schema in document["components"]["schemas"].items():
        for example in schema.get("examples", []):
            yield name, schema, example
        for field, inner in schema.get("properties", {}).items():
            for example in inner.get("examples", []):
                yield f"{name}.{field}", inner, example


def found_examples(content: dict[str, Any], document: dict[str, Any]) -> list[Any]:
    found = [content["example"]] if "example" in content else []
    found += [item["value"] for item in content.get("examples", {}).values() if "value" in item]
    if not found and (name := content.get("schema", {}).get("$ref", "").rpartition("/")[2]):
        found = document["components"]["schemas"][name].get("examples", [])
    return found


# --- the server against it --------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
def test_what_the_document_allows_breaks_nothing(api: Api) -> None:
    """No 5xx, and answers of the documented kinds, for what is made from the document."""
    broken: dict[str, str] = {}
    found = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    for result in found.get_all_operations():
        assert isinstance(result, Ok), result.err()
        operation = result.ok()
        try:
            attack(api, operation)
        except BaseExceptionGroup as group:  # hypothesis found several
            broken[operation.label] = "\n".join(str(error) for error in group.exceptions)
        except Failure as failure:
            broken[operation.label] = str(failure)
    assert broken == {}, "\n\n".join(f"{label}\n{text}" for label, text in broken.items())


def attack(api: Api, operation: APIOperation[Any, Any, Any, Any]) -> None:
    """Call the operation with good and bad input of all kinds. Raises Failure."""
    jobs = [api.submit()["job_id"] for _ in range(3)]
    api.client.post(f"/api/v1/jobs/{jobs[0]}/cancel")
    ids = st.sampled_from(["", *jobs])

    @seed(20261120)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(case=st.one_of(*strategies(operation)), known=ids)
    def call(case: Case, known: str) -> None:
        case.headers.pop("prefer", None)  # how long to wait is not what is tried here
        for name in ("job_id", "video_id"):
            if known and name in case.path_parameters:
                case.path_parameters[name] = known
        if operation.label == EVENTS and known in jobs[1:]:
            return  # the stream of a job that waits has no end
        response = case.call(headers={"Authorization": f"Bearer {KEY}"}, timeout=20)
        if response.status_code != NOT_IMPLEMENTED:
            checks = STREAM_CHECKS if operation.label == EVENTS else CHECKS
            case.validate_response(response, checks=checks)

    call()


def strategies(operation: APIOperation[Any, Any, Any, Any]) -> Iterator[st.SearchStrategy[Case]]:
    yield operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    # schemathesis 4.32 fails itself at bad forms with files; test_bad_bodies.py has some.
    if not any("multipart" in body.media_type for body in operation.body):
        yield operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)


def test_the_server_works_after_all_that(api: Api) -> None:
    assert_serves(api)
    assert json.loads(httpx.get(f"{api.url}/health", trust_env=False).text)["status"] == "ok"
