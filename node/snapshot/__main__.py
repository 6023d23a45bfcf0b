"""The process that cuts a snapshot for a node: `python -m node.snapshot DIRECTORY`, with a pipe of the node's."""

import sys

from node.snapshot.apart import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.stdin.fileno()))
