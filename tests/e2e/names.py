"""A small name server on port 53 of several loopback addresses, each with a habit of its own.

It knows one host, login.example.test, which is 127.0.0.1, and appends each question to a log:
the address it was asked at, the type, the name.
"""

import selectors
import socket
import struct
import sys

HOST = "login.example.test"
A, AAAA = 1, 28
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
# What each address answers about the host's IPv6 address; None is no answer to any question.
HABITS = {
    "127.0.1.1": NOERROR,
    "127.0.1.2": NXDOMAIN,
    "127.0.1.3": SERVFAIL,
    "127.0.1.4": None,
}
# What these answer to every question.
REFUSALS = {"127.0.1.5": NXDOMAIN, "127.0.1.6": SERVFAIL}


def question(message):
    """The name and type asked for, and where the question ends (RFC 1035 section 4.1.2)."""
    labels, at = [], 12
    while message[at]:
        labels.append(message[at + 1 : at + 1 + message[at]].decode("ascii"))
        at += 1 + message[at]
    (kind,) = struct.unpack_from("!H", message, at + 1)
    return ".".join(labels).lower(), kind, at + 5


def answer(message, server):
    """The reply of the server at this address, or None for silence."""
    name, kind, end = question(message)
    print(server, {A: "A", AAAA: "AAAA"}.get(kind, kind), name, flush=True)
    code, records = NXDOMAIN, b""
    if server in REFUSALS:
        code = REFUSALS[server]
    elif HABITS[server] is None:
        return None
    elif name == HOST and kind == A:
        code = NOERROR
        # A pointer to the name in the question, class IN, an hour to live.
        records = struct.pack("!HHHIH", 0xC00C, A, 1, 3600, 4) + socket.inet_aton("127.0.0.1")
    elif name == HOST:
        code = HABITS[server]
    flags = 0x8180 | code
    header = message[:2] + struct.pack("!HHHHH", flags, 1, 1 if records else 0, 0, 0)
    return header + message[12:end] + records


def main():
    """Serves until it is ended."""
    selector = selectors.DefaultSelector()
    for server in [*HABITS, *REFUSALS]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener.bind((server, 53))
        selector.register(listener, selectors.EVENT_READ, server)
    print("listening", flush=True)
    while True:
        for key, _ in selector.select():
            message, client = key.fileobj.recvfrom(4096)
            reply = answer(message, key.data)
            if reply:
                key.fileobj.sendto(reply, client)


if __name__ == "__main__":
    sys.exit(main())
