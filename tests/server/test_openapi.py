"""Requests that schemathesis makes out of the OpenAPI description."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from .conftest import Served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


def test_replies_are_as_described(served: Served) -> None:
    described = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operations = [
        result.ok() for result in described.get_all_operations() if isinstance(result, Ok)
    ]
    assert len(operations) == 8
    for operation in operations:

        @settings(max_examples=15, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def reply_is_as_described(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        reply_is_as_described()
