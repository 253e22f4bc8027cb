"""Gives a request for a response an id that names this engine, so that later requests find it. Pure.

vLLM takes the id of a response from the body's `request_id`, and else makes one up. The id is put in front of the
fields of the document, unread: JSON readers take the last of equal names, so an id that the client has chosen stays.
"""

from __future__ import annotations

_SPACE = b" \t\r\n"


def marked(beginning: bytes, response: str) -> bytes:
    """The first bytes of a body, with the id; as they are if they do not begin a JSON object in UTF-8.

    Also left alone: an object without fields, which vLLM refuses, and a beginning that does not reach the first field.
    """
    found = beginning.lstrip(_SPACE)
    if not response or not found.startswith(b"{") or not found[1:].lstrip(_SPACE).startswith(b'"'):
        return beginning
    return b'{"request_id":"%s",%s' % (response.encode(), found[1:])
