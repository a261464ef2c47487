"""A part of a recording, as a player asks for it when somebody moves to the middle."""

from __future__ import annotations

import re

from starlette.responses import Response

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def ranged(content: bytes, media_type: str, asked: str | None) -> Response:
    """`content`, or the one range of it that the header `asked` for (RFC 9110, section 14).

    A header that is malformed, or asks for several ranges, may be ignored, and is; one beyond the end is answered 416.
    """
    headers = {"Accept-Ranges": "bytes"}
    span = _span(asked or "", len(content))
    if span is None:
        return Response(content, media_type=media_type, headers=headers)
    if not span:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{len(content)}"
    return Response(content[span.start : span.stop], 206, media_type=media_type, headers=headers)


def _span(asked: str, size: int) -> range | None:
    """The bytes that are meant; None for the whole, an empty range for what cannot be satisfied."""
    match = _RANGE.fullmatch(asked.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(size - int(last), 0), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)
