"""A long way to a server: relay.py PORT SERVER_PORT MILLISECONDS LOG, all on 127.0.0.1.

What comes from either side goes on to the other so many milliseconds later. For each connection
that has ended, LOG gets a line with its round trips: how often the client sent, and then got.
"""

import asyncio
import sys

PORT, SERVER_PORT, DELAY, LOG = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]


async def pump(reader, writer, sent, delivered):
    """Passes on what comes, late; calls `sent` when it comes and `delivered` when it goes on."""
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue()

    async def receive():
        data = True
        while data:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            sent(data)
            queue.put_nowait((loop.time() + DELAY / 1000, data))

    receiving = asyncio.create_task(receive())
    data = True
    while data:
        due, data = await queue.get()
        await asyncio.sleep(due - loop.time())
        delivered(data)
        writer.write(data)
    writer.close()
    await receiving


async def serve(reader, writer):
    """One connection."""
    there, back = await asyncio.open_connection("127.0.0.1", SERVER_PORT)
    trips, waiting = 0, False

    def asks(data):
        nonlocal waiting
        waiting = waiting or bool(data)

    def gets(data):
        nonlocal trips, waiting
        if data and waiting:
            trips, waiting = trips + 1, False

    await asyncio.gather(
        pump(reader, back, asks, lambda data: None), pump(there, writer, lambda data: None, gets)
    )
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(f"{trips}\n")


async def main():
    """Serves until it is ended."""
    server = await asyncio.start_server(serve, "127.0.0.1", PORT)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
