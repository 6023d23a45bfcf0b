"""Every failure in its one shape: which HTTP status a code has, and the handlers that Litestar calls."""

from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from node.client import error_body
from node.client.answers import ErrorAnswer
from node.errors import HansaError, NotFound, RejectedTransaction, Unavailable

_log = structlog.get_logger("api")

_STATUS_OF_CODE = {
    "bad_signature": 403,
    "unknown_principal": 403,
    "not_for_nodes": 403,
    "policy_unsatisfied": 403,
    "approval_required": 403,
    "route_not_found": 404,
    "unknown_contract": 404,
    "unknown_method": 404,
    "method_not_allowed": 405,
    "body_too_slow": 408,
    "request_conflict": 409,
    "transaction_executed": 409,
    "not_expired_yet": 409,
    "wrong_proof_height": 409,
    "history_pruned": 410,
    "block_pruned": 410,
    "retention_over": 410,
    "transaction_too_large": 413,
    "body_too_large": 413,
    "too_many_transactions": 413,
    "proof_too_large": 413,
    "unsupported_media_type": 415,
    "query_refused": 422,
    "queue_full": 429,
    "too_many_from_sender": 429,
    "too_many_streams": 429,
    "proofs_spent": 429,
}


def status_of(error: HansaError) -> int:
    """The HTTP status that answers `error`."""
    if error.code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[error.code]
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, RejectedTransaction):
        return 400
    if isinstance(error, Unavailable):
        return 503
    return 500


def failure_headers(error: HansaError) -> dict[str, str]:
    """`Retry-After` in whole seconds, where the error says when to come again."""
    retry_after_ms = error.details.get("retry_after_ms")
    if isinstance(retry_after_ms, int):
        return {"retry-after": str(max(1, (retry_after_ms + 999) // 1000))}
    return {}


def failure_bytes(error: HansaError) -> bytes:
    """The JSON document of `error`."""
    return msgspec.json.encode(ErrorAnswer(error=error_body(error)))


def failure_response(error: HansaError) -> Response[bytes]:
    """The whole answer to a failed request."""
    return Response(
        failure_bytes(error),
        status_code=status_of(error),
        media_type="application/json",
        headers=failure_headers(error),
    )


def _on_hansa_error(_request: Request[Any, Any, Any], error: HansaError) -> Response[bytes]:
    if status_of(error) == 500:
        _log.error("a request failed", code=error.code, exc_info=error)
    return failure_response(error)


def _on_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Litestar's own refusals, in our words."""
    path = request.scope["path"][:200]
    if error.status_code == 404:
        return failure_response(NotFound("route_not_found", f"there is no {path}"))
    if error.status_code == 405:
        method = request.scope["method"]
        response = failure_response(
            RejectedTransaction("method_not_allowed", f"{path} does not answer to {method}")
        )
        response.headers.update(error.headers or {})
        return response
    if error.status_code < 500:
        return failure_response(RejectedTransaction("malformed_request", _explain(error)))
    return _on_bug(request, error)


def _explain(error: HTTPException) -> str:
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        parts = [
            f"{item.get('key', 'body')}: {item.get('message')}" for item in error.extra if isinstance(item, dict)
        ]
        if parts:
            return "; ".join(parts)[:500]
    return str(error.detail)[:500]


def _on_bug(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The reader learns that it is ours; what happened stands in the log, not in the answer."""
    _log.error("a request met a bug", method=request.scope["method"], path=request.scope["path"], exc_info=error)
    return failure_response(HansaError("internal_error", "the request failed inside the node; see its log"))


EXCEPTION_HANDLERS: ExceptionHandlersMap = {
    HansaError: _on_hansa_error,
    HTTPException: _on_http_error,
    Exception: _on_bug,
}
