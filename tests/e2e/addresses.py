"""A token endpoint over TLS and a proxy for CONNECT, on every address of the namespace it runs in.

Arguments: the PEM file of certificate and key, the port of the endpoint, the port of the proxy.
Each line on stdout is a request that came in: endpoint or proxy, and the address it came in at.
"""

import socket
import ssl
import sys
import threading

REPLY = b'{"access_token":"00Dxx!from-addresses","token_type":"Bearer"}'


def listen(port):
    """A socket for IPv4 and IPv6."""
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


def serve(listener, handle):
    """Hands each connection to a thread of its own; one that breaks off is no matter."""

    def quietly(connection):
        try:
            with connection:
                handle(connection)
        except OSError:
            pass

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=quietly, args=[connection], daemon=True).start()


def tell(what, connection):
    """The line for a request; an IPv4 address as such."""
    print(what, connection.getsockname()[0].removeprefix("::ffff:"), flush=True)


def read_head(connection):
    """Reads a request up to the blank line, and what came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(4096)
        if not part:
            raise ConnectionError("no whole request")
        received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def answer(connection):
    """Reads a POST with its body, and grants."""
    head, body = read_head(connection)
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += connection.recv(4096) or sys.exit("no whole body")
    tell("endpoint", connection)
    connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(REPLY), REPLY)
    )


def copy(source, sink):
    """Passes on what comes, up to its end."""
    try:
        while part := source.recv(4096):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def main():
    """Serves until it is ended."""
    certificate, port, proxy_port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def endpoint(connection):
        answer(context.wrap_socket(connection, server_side=True))

    def proxy(connection):
        read_head(connection)
        tell("proxy", connection)
        # The endpoint is here, whatever name was asked for.
        with socket.create_connection(("127.0.0.1", port)) as onward:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=copy, args=[onward, connection], daemon=True).start()
            copy(connection, onward)

    # Both are listened on before anybody is told.
    listeners = listen(port), listen(proxy_port)
    print("listening", flush=True)
    threading.Thread(target=serve, args=[listeners[1], proxy], daemon=True).start()
    serve(listeners[0], endpoint)


if __name__ == "__main__":
    main()
