"""Numbers that a node tells Prometheus."""

import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

TIMEOUT_S = 60.0
"""A node under the heaviest load answers late, and late is soon enough here."""
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def gauges(url: str) -> dict[str, float]:
    """Every number without labels that the node at `url` tells, by name."""
    found = {}
    with _opener.open(f"{url}/metrics", timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if not line.startswith("#") and "{" not in name:
            found[name] = float(value)
    return found


def gauge(url: str, name: str) -> int:
    """One of them, as a whole number; 0 where it tells none."""
    return int(gauges(url).get(name, 0))


def gauges_of_all(urls: Sequence[str]) -> list[dict[str, float]]:
    """The numbers of each node, asked at the same time."""
    with ThreadPoolExecutor(max(1, len(urls))) as threads:
        return list(threads.map(gauges, urls))
