"""Streams between our own processes without HTTP/2: the frames that stream_service.proto describes.

gRPC for Python hands each message through threads of its core: some ten wake-ups a message pair, and three quarters of
the CPU time of the streams to the leader (docs/decisions/0152). Here a message is one write and one read of the event
loop. Methods, messages, statuses, credentials and checks are gRPC's: `server` plays the same handlers, and a client
gets the same errors.

- `codec` is pure: bytes to frames and back.
- `connection` is a transport with its bounded inbox, back-pressure and the watch over a silent peer.
- `client` opens a stream; `server` accepts streams; `contexts` makes the TLS contexts of both.

Ownership: everything of a connection belongs to the event loop it was made on. One task reads a stream and one writes.
"""
