"""The same with all that schemathesis has: the boundaries of each field, and many drawn requests."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import settings

from loradesk_engine.serving.http import HttpServer

from .test_fuzz import CHECKS, description, send

schema = schemathesis.openapi.from_dict(description())


@pytest.mark.slow
@schema.parametrize()
@settings(CHECKS, max_examples=500)
def test_no_server_errors_in_a_long_run(case: schemathesis.Case, small: HttpServer) -> None:
    send(case, small, real_model=True)


@pytest.mark.slow
@schema.parametrize()
@CHECKS
def test_no_server_errors_at_boundaries(case: schemathesis.Case, small: HttpServer) -> None:
    send(case, small, real_model=False)
