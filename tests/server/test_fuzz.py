"""schemathesis on our own OpenAPI description: whatever it sends, no answer is a 5xx."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from support.clock import PATIENCE

from loradesk_engine.serving.http import HttpServer, ServerOptions
from loradesk_engine.serving.http.app import build_app
from loradesk_engine.serving.http.feed import Feed
from loradesk_engine.serving.http.metrics import Metrics
from loradesk_engine.serving.worker import EngineWorker

from .conftest import KEY, MODEL, client_of


def description() -> dict[str, object]:
    metrics = Metrics()
    return build_app(Feed(EngineWorker(), metrics), ServerOptions(), metrics).openapi()


# Drawn requests only. `make test-all` also enumerates each field's boundaries, in test_fuzz_long.py: schemathesis makes
# those while tests are collected, in every process.
DRAWN = SchemathesisConfig.from_dict({"phases": {"coverage": {"enabled": False}}})
schema = schemathesis.openapi.from_dict(description(), config=DRAWN)
CHECKS = settings(
    deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True, max_examples=15
)


def send(case: schemathesis.Case, server: HttpServer, *, real_model: bool) -> None:
    if real_model and isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = MODEL  # past the first check
    answer = case.call(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=PATIENCE)
    assert answer.status_code < 500, (case.method, case.path, case.body, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@schema.parametrize()
@CHECKS
def test_no_server_errors(case: schemathesis.Case, small: HttpServer) -> None:
    send(case, small, real_model=False)


@schema.include(path_regex="completions").parametrize()
@CHECKS
def test_no_server_errors_with_a_model_that_exists(case: schemathesis.Case, small: HttpServer) -> None:
    send(case, small, real_model=True)


def test_the_server_is_well_after_all_that(small: HttpServer) -> None:
    with client_of(small) as client:
        metrics = client.get("/metrics").text
        assert 'status="500"' not in metrics
        assert client.post("/activate_adapters", json={"adapter_names": []}).status_code == 200
