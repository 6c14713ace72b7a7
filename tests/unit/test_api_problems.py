"""Every error becomes one answer: a problem, or OpenAI's envelope; whatever a caller sent."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Form, HTTPException, Query, WebSocket
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from stillreel import errors
from stillreel.api.error_handlers import install_problems
from stillreel.api.problems import PROBLEMS, problem_of
from stillreel.errors import (
    JobUnknown,
    PrefectUnavailable,
    QuotaExceeded,
    StillreelError,
    TooManyRequests,
    Unauthorized,
)

SECRET = "sk-do-not-tell"


class Camera(BaseModel):
    kind: str
    speed: float = 1.0


class Order(BaseModel):
    model_config = {"extra": "forbid"}

    prompt: str
    duration: float = Field(5.0, ge=1, le=10)
    camera: Camera | str = "zoom"
    tags: dict[str, int] = {}
    sizes: list[int] = []

    @field_validator("prompt")
    @classmethod
    def _not_secret(cls, value: str) -> str:
        if value == "bad":
            raise ValueError("is not wanted")
        return value


def make_app(error: Exception | None = None) -> FastAPI:
    app = FastAPI()
    install_problems(app)

    async def fail() -> None:
        assert error is not None
        raise error

    for path in ("/fail", "/v1/fail"):
        app.add_api_route(path, fail, responses=PROBLEMS)

    for path in ("/orders", "/v1/orders"):

        @app.post(path)
        async def order(order: Order, limit: Annotated[int, Query(ge=1)] = 1) -> Order:
            return order

    @app.post("/form")
    async def form(prompt: Annotated[str, Form()], seconds: Annotated[int, Form()] = 1) -> str:
        return prompt

    @app.websocket("/socket")
    async def socket(socket: WebSocket, accept: bool = False) -> None:
        if accept:
            await socket.accept()
        assert error is not None
        raise error

    return app


def answer(error: Exception, path: str = "/fail"):
    return TestClient(make_app(error)).get(path)


def post(body: Any, path: str = "/orders"):
    return TestClient(make_app()).post(path, json=body)


@pytest.mark.parametrize(
    "error",
    [cls for cls in vars(errors).values() if isinstance(cls, type)],
    ids=lambda c: c.__name__,
)
def test_each_error_of_the_tree_is_a_problem(error: type) -> None:
    if not issubclass(error, StillreelError):
        pytest.skip("not an error of ours")
    got = answer(error("What was wrong."))
    assert got.status_code == got.json()["status"] == error.http_status
    assert got.headers["content-type"] == "application/problem+json"
    assert got.json() | {"request_id": ""} == {
        "type": f"/problems/{error.code}",
        "title": error().message,
        "status": error.http_status,
        "detail": "What was wrong.",
        "instance": "/fail",
        "code": error.code,
        "error": "What was wrong",
        "request_id": "",
    }


@pytest.mark.parametrize("text", ["Missing authorization header", "Invalid API key"])
@pytest.mark.parametrize("dot", ["", "."])
def test_401_has_the_words_of_the_design_document(text: str, dot: str) -> None:
    got = answer(Unauthorized(text + dot))
    assert got.json()["error"] == text
    assert got.headers["www-authenticate"] == "Bearer"


def _after(error: errors.ApiError, seconds: float) -> errors.ApiError:
    error.retry_after = seconds
    return error


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (PrefectUnavailable(), "2"),
        (errors.StorageUnavailable(), "2"),
        (TooManyRequests(), "2"),
        (HTTPException(503), "2"),
        (HTTPException(503, headers={"Retry-After": "7"}), "7"),
        (_after(QuotaExceeded(), 41.2), "42"),
        (_after(TooManyRequests(), 0.0), "1"),
        (JobUnknown(), None),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/fail", "/v1/fail"])
def test_says_when_to_try_again(error: Exception, seconds: str | None, path: str) -> None:
    assert answer(error, path).headers.get("retry-after") == seconds


def test_headers_of_an_error_reach_the_caller() -> None:
    error = TooManyRequests()
    setattr(error, "headers", {"RateLimit": '"requests";r=0;t=9'})  # noqa: B010
    assert answer(error).headers["ratelimit"] == '"requests";r=0;t=9'


def test_unknown_path_and_method_are_problems_too() -> None:
    client = TestClient(make_app())
    assert client.get("/nothing").json() | {"request_id": ""} == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "There is nothing at this address.",
        "instance": "/nothing",
        "code": "not_found",
        "error": "There is nothing at this address",
        "request_id": "",
    }
    got = client.get("/orders")
    assert (got.status_code, got.json()["code"]) == (405, "method_not_allowed")
    assert got.headers["allow"] == "POST"
    assert "POST" in got.json()["detail"]


def test_what_nobody_foresaw_tells_nothing_and_is_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The client would raise what is raised after the answer: nothing is.
    got = answer(RuntimeError(f"could not log in with {SECRET}"))
    assert (got.status_code, got.json()["code"]) == (500, "internal")
    assert SECRET not in got.text
    (record,) = [r for r in caplog.records if r.name == "stillreel.api"]
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert SECRET in str(record.exc_info[1])


def test_an_answer_that_has_begun_is_broken_off() -> None:
    app = make_app()

    async def begins(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    app.mount("/begins", begins)
    with pytest.raises(RuntimeError, match="half way"):
        TestClient(app).get("/begins/")


# --- what is not valid ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["#/prompt"]),
        ({"prompt": 1, "duration": "long"}, ["#/prompt", "#/duration"]),
        ({"prompt": "x", "duration": 99}, ["#/duration"]),
        ({"prompt": "bad"}, ["#/prompt"]),
        ({"prompt": "x", "sizes": [1, "a"]}, ["#/sizes/1"]),
        ({"prompt": "x", "tags": {"a/b~c d": "x"}}, ["#/tags/a~1b~0c%20d"]),
        ({"prompt": "x", "camera": {"speed": 1}}, ["#/camera/kind", "#/camera"]),
        ({"prompt": "x", "camera": {"kind": "x", "speed": "y"}}, ["#/camera/speed", "#/camera"]),
        ({"prompt": "x", "hue": 3}, ["#/hue"]),
        ([], ["#"]),
        (3, ["#"]),
        (None, ["#"]),
    ],
    ids=str,
)
def test_each_invalid_field_has_its_pointer(body: Any, pointers: list[str]) -> None:
    got = post(body)
    assert (got.status_code, got.json()["code"]) == (422, "request_rejected")
    assert [error["pointer"] for error in got.json()["errors"]] == pointers
    assert all(set(error) == {"pointer", "detail"} for error in got.json()["errors"])


def test_a_parameter_is_named_in_the_detail() -> None:
    got = TestClient(make_app()).post("/orders?limit=0", json={"prompt": "x"})
    (error,) = got.json()["errors"]
    assert set(error) == {"detail"}
    assert error["detail"].startswith("query parameter limit: ")


def test_a_form_field_has_its_pointer() -> None:
    got = TestClient(make_app()).post("/form", data={"seconds": "x"})
    assert [error["pointer"] for error in got.json()["errors"]] == ["#/prompt", "#/seconds"]


def test_broken_json_says_where() -> None:
    got = TestClient(make_app()).post(
        "/orders", content=b'{"prompt": }', headers={"content-type": "application/json"}
    )
    assert (got.status_code, got.json()["errors"]) == (
        422,
        [{"pointer": "#", "detail": "is not JSON (at character 11)"}],
    )


def test_what_was_sent_is_not_sent_back() -> None:
    got = post({"prompt": ["x" * 10_000], "duration": SECRET})
    assert SECRET not in got.text
    assert len(got.content) < 2000


def test_many_mistakes_make_a_bounded_answer() -> None:
    got = post({"prompt": "x", "sizes": ["a"] * 5000, "y" * 100_000: 1})
    assert got.status_code == 422
    assert len(got.json()["errors"]) == 100
    assert len(got.content) < 30_000


def test_title_and_detail_say_what_is_wrong() -> None:
    body = post({"prompt": "x", "duration": 99}).json()
    assert body["title"] == "The order cannot be carried out as it stands."
    assert body["detail"] == "duration: Input should be less than or equal to 10"


TEXT = st.text(st.characters(codec=None), max_size=500)  # surrogates and NUL too
_app = TestClient(make_app())


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=TEXT, value=TEXT)
def test_no_text_of_a_caller_makes_the_answer_fail(name: str, value: str) -> None:
    content = json.dumps({"prompt": 1, name: value}).encode()
    got = _app.post("/orders", content=content, headers={"content-type": "application/json"})
    assert got.status_code == 422
    got.text.encode()
    json.dumps(got.json(), ensure_ascii=False).encode()


@settings(max_examples=100)
@given(message=TEXT, path=TEXT)
def test_any_message_and_path_can_be_sent(message: str, path: str) -> None:
    problem = problem_of(JobUnknown(message or "x"), path, "r-1")
    text = json.dumps(problem, ensure_ascii=False)
    text.encode()
    assert "\0" not in problem["detail"]
    assert len(problem["detail"]) <= 300
    assert problem["instance"].isascii()


# --- OpenAI's envelope, sockets, the description --------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (Unauthorized(), 401, "authentication_error", "unauthorized"),
        (errors.Forbidden(), 403, "permission_error", "forbidden"),
        (JobUnknown(), 404, "invalid_request_error", "job_unknown"),
        (TooManyRequests(), 429, "rate_limit_error", "too_many_requests"),
        (RuntimeError(SECRET), 500, "server_error", "internal"),
        (PrefectUnavailable(), 503, "server_error", "prefect_unavailable"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_under_v1_errors_are_as_openai_has_them(
    error: Exception, status: int, kind: str, code: str
) -> None:
    got = answer(error, "/v1/fail")
    assert (got.status_code, got.headers["content-type"]) == (status, "application/json")
    assert set(got.json()) == {"error"}
    told = got.json()["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert (told["type"], told["param"], told["code"]) == (kind, None, code)
    assert SECRET not in got.text


def test_under_v1_the_first_invalid_field_is_the_param() -> None:
    told = post({"prompt": "x", "sizes": [1, "a"]}, "/v1/orders").json()["error"]
    assert (told["type"], told["param"]) == ("invalid_request_error", "sizes.1")


def test_a_socket_is_denied_with_a_problem_before_it_is_open() -> None:
    with (
        pytest.raises(WebSocketDenialResponse) as caught,
        TestClient(make_app(JobUnknown())).websocket_connect("/socket"),
    ):
        pass
    assert caught.value.status_code == 404
    assert caught.value.json()["code"] == "job_unknown"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [(JobUnknown(), 1008, "job_unknown"), (PrefectUnavailable(), 1011, "prefect_unavailable")],
)
def test_an_open_socket_is_closed_with_the_code(error: Exception, code: int, reason: str) -> None:
    with TestClient(make_app(error)).websocket_connect("/socket?accept=true") as socket:
        with pytest.raises(WebSocketDisconnect) as caught:
            socket.receive_text()
        assert (caught.value.code, caught.value.reason) == (code, reason)


def test_a_problems_type_can_be_looked_up() -> None:
    client = TestClient(make_app())
    link = answer(PrefectUnavailable()).json()["type"]
    assert client.get(link).json() == {
        "type": link,
        "title": PrefectUnavailable().message,
        "status": 503,
        "retryable": True,
    }
    assert client.get("/problems/nonsense").status_code == 404


def test_the_api_is_described_with_its_problems() -> None:
    app = make_app()
    document = app.openapi()
    assert app.openapi() == document
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    for reference in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert reference in document["components"]["schemas"]
    paths = document["paths"]
    assert list(paths["/orders"]["post"]["responses"]["422"]["content"]) == [
        "application/problem+json"
    ]
    assert list(paths["/v1/orders"]["post"]["responses"]["422"]["content"]) == ["application/json"]
    assert set(paths["/fail"]["get"]["responses"]) == {"200", *map(str, PROBLEMS)}
    assert "/problems/{code}" not in paths
