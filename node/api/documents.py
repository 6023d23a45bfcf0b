"""/openapi.json and /docs: what the API says about itself.

Both add to the routes what the active contracts declare: each query is an operation of its own there. The page
is plain HTML without scripts or foreign addresses, so that it opens inside a bank's network.
"""

from collections.abc import Callable
from html import escape
from typing import Any

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from node.api.service import NodeService
from node.client.answers import ContractAnswer, ErrorAnswer
from node.errors import CATALOGUE

_METHODS = ("get", "post")
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;
max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1,h2,h3{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid #d5dce3;padding-bottom:.3rem}
code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f6f8;
padding:.75rem;overflow:auto;border-radius:4px}
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;
border-bottom:1px solid #e8ecf0}.m{display:inline-block;min-width:3.2rem;font-weight:600}details{margin:.4rem 0}
summary{cursor:pointer}nav a{margin-right:1rem}
@media(prefers-color-scheme:dark){body{color:#dfe6ec;background:#14191f}pre{background:#1d242c}
td,th,h2{border-color:#303a45}a{color:#8ab8ff}}
"""


def openapi_document(schema: dict[str, Any], contracts: tuple[ContractAnswer, ...]) -> dict[str, Any]:
    """`schema` (Litestar's) with the one error shape everywhere and an operation for each contract's query."""
    (_, error_schemas) = msgspec.json.schema_components([ErrorAnswer], ref_template="#/components/schemas/{name}")
    components = {**schema.get("components", {})}
    components["schemas"] = {**components.get("schemas", {}), **error_schemas}
    reference = {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}
    failure = {"description": "Every failure has this shape.", "content": {"application/json": reference}}
    paths: dict[str, Any] = {}
    for path, item in schema["paths"].items():
        paths[path] = {**item}
        for method in _METHODS:
            if method in item:
                responses = {code: answer for code, answer in item[method]["responses"].items() if code < "400"}
                kept = item[method]["responses"].get("503")
                responses |= {"503": kept} if path == "/readyz" else {}
                paths[path][method] = {**item[method], "responses": {**responses, "default": failure}}
    answer = paths["/v1/query/{contract}/{name}"]["post"]["responses"]
    for contract in contracts:
        for query in contract.queries:
            paths[f"/v1/query/{contract.name}/{query.name}"] = {
                "post": {
                    "tags": [f"contract {contract.name}"],
                    "summary": f"{contract.name}.{query.name}",
                    "description": query.doc,
                    "operationId": f"query_{contract.name}_{query.name}",
                    "requestBody": {"content": {"application/json": {"schema": _inlined(query.arguments)}}},
                    "responses": answer,
                }
            }
    return {**schema, "paths": paths, "components": components}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose own definitions stand in place of references: OpenAPI resolves those from its root."""
    definitions = schema.get("$defs", {})

    def walk(node: Any, depth: int) -> Any:
        if isinstance(node, list):
            return [walk(item, depth) for item in node]
        if not isinstance(node, dict):
            return node
        name = str(node.get("$ref", "")).removeprefix("#/$defs/")
        if name in definitions:
            return walk(definitions[name], depth + 1) if depth < 16 else {}
        return {key: walk(item, depth) for key, item in node.items() if key != "$defs"}

    inlined: dict[str, Any] = walk(schema, 0)
    return inlined


def document_routes(
    service: NodeService, describe: Callable[[], dict[str, Any]], version: str
) -> list[HTTPRouteHandler]:
    """The handlers of /openapi.json and /docs; `describe` gives Litestar's description of the routes, once."""
    routes: dict[str, Any] = {}

    def document() -> dict[str, Any]:
        if not routes:
            routes.update(describe())
        return openapi_document(routes, service.contracts())

    @get("/openapi.json", include_in_schema=False, sync_to_thread=False)
    def openapi() -> Response[bytes]:
        return Response(msgspec.json.encode(document()), media_type="application/json")

    @get("/docs", include_in_schema=False, sync_to_thread=False)
    def docs() -> Response[bytes]:
        page = docs_page(document(), service.contracts(), service.network, version)
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return Response(
            page.encode(), media_type="text/html; charset=utf-8", headers={"content-security-policy": policy}
        )

    return [openapi, docs]


def docs_page(document: dict[str, Any], contracts: tuple[ContractAnswer, ...], network: str, version: str) -> str:
    """The documentation as one self-contained HTML page."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Hansa API · {escape(network)}</title><style>{_STYLE}</style>",
        f"<h1>Hansa API</h1><p>Network <code>{escape(network)}</code>, version {escape(version)}.",
        "<nav><a href=#operations>Operations</a><a href=#contracts>Contracts</a><a href=#errors>Errors</a>",
        "<a href=/openapi.json>openapi.json</a></nav><h2 id=operations>Operations</h2>",
    ]
    for path, item in document["paths"].items():
        parts += [_operation(path, method, item[method]) for method in _METHODS if method in item]
    parts.append("<h2 id=contracts>Contracts</h2>")
    parts += [_contract(contract) for contract in contracts]
    parts.append(
        '<h2 id=errors>Errors</h2><p>Every failure is <code>{"error": {"code", "message", "action", "retryable",'
        ' "details"}}</code>.<table><tr><th>Code<th>Cause<th>What to do<th>Retry'
    )
    for code, entry in sorted(CATALOGUE.items()):
        retry = "yes" if entry.retryable else "no"
        parts.append(f"<tr><td><code>{code}</code><td>{escape(entry.cause)}<td>{escape(entry.action)}<td>{retry}")
    parts.append("</table></html>\n")
    return "\n".join(parts)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(parameter['in'])}"
        f"<td>{escape(parameter.get('description') or '')}"
        for parameter in operation.get("parameters", [])
    )
    answers = ", ".join(
        f"{escape(code)} {escape(answer.get('description', ''))}" for code, answer in operation["responses"].items()
    )
    return (
        f"<details><summary><span class=m>{method.upper()}</span> <code>{escape(path)}</code>"
        f" {escape(operation.get('summary') or '')}</summary><p>{escape(operation.get('description') or '')}"
        + (f"<table><tr><th>Parameter<th>In<th>Meaning{rows}</table>" if rows else "")
        + f"<p>Answers: {answers}</details>"
    )


def _contract(contract: ContractAnswer) -> str:
    parts = [f"<h3>{escape(contract.name)} <small>version {contract.version}</small></h3><p>{escape(contract.doc)}"]
    for kind, methods in (("call", contract.calls), ("query", contract.queries)):
        for method in methods:
            schema = msgspec.json.format(msgspec.json.encode(method.arguments)).decode()
            parts.append(
                f"<details><summary><span class=m>{kind}</span> <code>{escape(contract.name)}.{escape(method.name)}"
                f"</code> {escape(method.doc.partition(chr(10))[0])}</summary><p>{escape(method.doc)}"
                f"<pre>{escape(schema)}</pre></details>"
            )
    return "\n".join(parts)
