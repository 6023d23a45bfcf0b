"""Events by the API: pages that continue, streams that resume, are bounded, and end with the node."""

import asyncio

import httpx

from node.api import ApiServer
from tests.node.memory_node import MemoryNode, as_json
from tests.node.test_api import check_error, deposit, http, node, server

__all__ = ["http", "node", "server"]


async def put(http: httpx.AsyncClient, node: MemoryNode, *amounts: int) -> None:
    for amount in amounts:
        await http.post("/v1/transactions", json={"transaction": deposit(amount).data.hex()})
    node.make_block()


async def test_a_page_of_events_continues_where_it_ended(http: httpx.AsyncClient, node: MemoryNode) -> None:
    await put(http, node, 1, 2)
    await put(http, node, 3)
    first = (await http.get("/v1/events?limit=2")).json()
    assert [event["data"]["amount"] for event in first["events"]] == [1, 2]
    assert first["complete"] is False
    second = (await http.get(f"/v1/events?after={first['next']}")).json()
    assert [event["data"]["amount"] for event in second["events"]] == [3]
    assert second["complete"] is True
    none = (await http.get("/v1/events?topic=till/account/B-9")).json()
    assert none["events"] == []


async def lines_until(response: httpx.Response, wanted: str) -> list[str]:
    found = []
    async for line in response.aiter_lines():
        found.append(line)
        if wanted in line:
            return found
    return found


async def test_a_stream_resumes_at_its_cursor_and_beats(http: httpx.AsyncClient, node: MemoryNode) -> None:
    await put(http, node, 1, 2)
    accept = {"accept": "text/event-stream"}
    async with http.stream("GET", "/v1/events", headers={**accept, "last-event-id": "1:0"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        reading = asyncio.create_task(lines_until(response, '"amount":3'))
        await put(http, node, 3)
        lines = await asyncio.wait_for(reading, 5)
    data = [line for line in lines if line.startswith("data: ")]
    assert [as_json(line[6:].encode())["cursor"] for line in data] == ["1:1", "2:0"]
    async with http.stream("GET", "/v1/events", headers=accept) as response:
        lines = await asyncio.wait_for(lines_until(response, ": height"), 5)
    assert not [line for line in lines if line.startswith("data: ")], "without a cursor a stream starts now"
    assert [line for line in lines if line.startswith("id: ")] == ["id: 3:-1"]


async def test_streams_are_bounded_and_their_places_come_back(http: httpx.AsyncClient, node: MemoryNode) -> None:
    accept = {"accept": "text/event-stream"}
    async with http.stream("GET", "/v1/events", headers=accept) as first:
        assert first.status_code == 200
        async with http.stream("GET", "/v1/events", headers=accept) as second:
            assert second.status_code == 200
            async with http.stream("GET", "/v1/events", headers=accept) as third:
                await third.aread()
                check_error(third, 429, "too_many_streams")

    async def opened() -> None:
        while True:
            async with http.stream("GET", "/v1/events", headers=accept) as again:
                if again.status_code == 200:
                    return

    await asyncio.wait_for(opened(), 5)


async def test_stopping_ends_open_streams(node: MemoryNode) -> None:
    server = ApiServer(node, "127.0.0.1", 0)
    await server.start()
    async with (
        httpx.AsyncClient(base_url=server.url, trust_env=False, verify=False) as http,
        http.stream("GET", "/v1/events", headers={"accept": "text/event-stream"}) as response,
    ):
        reading = asyncio.create_task(lines_until(response, "never"))
        await asyncio.wait_for(server.stop(), 3)
        await asyncio.wait_for(reading, 3)
