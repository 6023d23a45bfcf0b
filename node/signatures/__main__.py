"""The process of apart.py: its questions come over standard input, which is a socket."""

import contextlib
import socket

from node.signatures.apart import serve

with contextlib.suppress(ConnectionError), socket.socket(fileno=0) as link:
    serve(link)
