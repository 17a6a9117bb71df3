"""Pictures that come as text: data URLs, and paths on this machine, which are refused unless a folder was allowed.

A path is opened one part at a time below the allowed folder and no link is followed, so that neither ``..`` nor a link that
appears between a check and the opening leads outside.

source: spec lapa 5.3: LAPA's clients send a path that the server opens, whatever it is.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from pathlib import Path, PurePosixPath

import numpy as np

from worldsim.serving.limits import Limits, Refusal

PICTURES = ("PNG", "JPEG")
_BASE64 = ";base64,"


def frame_from_text(text: str, key: str, allowed: Path | None, limits: Limits) -> np.ndarray:
    """uint8 ``[H, W, 3]`` from ``data:image/png;base64,…`` or from a path.

    Raises:
        Refusal: 400 no picture, 403 a path that is not allowed, 404 no file there, 413 too large.
    """
    if text.startswith("data:"):
        return decode(_data_url(text, key), key, limits)
    return decode(_read(text, key, allowed, limits), key, limits)


def _data_url(text: str, key: str) -> bytes:
    head, found, body = text.partition(_BASE64)
    if not found or not head.startswith("data:image/"):
        raise Refusal(400, f"{key}: wanted a data URL of the form data:image/png;base64,…")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{key}: the data URL is not base64: {error}") from None


def decode(data: bytes, key: str, limits: Limits) -> np.ndarray:
    """A PNG or JPEG file's bytes -> uint8 ``[H, W, 3]`` RGB; its size is looked at before a pixel is decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as picture:
            width, height = picture.size
            if width * height > limits.pixels:
                raise Refusal(413, f"{key} has {height}x{width} pixels; at most {limits.pixels} are accepted")
            return np.asarray(picture.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"{key}: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise Refusal(400, f"{key} is no PNG or JPEG picture ({str(error)[:120]})") from None


def _read(text: str, key: str, allowed: Path | None, limits: Limits) -> bytes:
    if allowed is None:
        raise Refusal(
            403,
            f"{key}: paths on the server are refused; send the pixels, or start the server with --set allow_paths=DIR",
        )
    outside = Refusal(403, f"{key}: only plain paths below the allowed folder are opened, without '..' and without links")
    parts = _parts_below(text, allowed)
    if parts is None:
        raise outside
    try:
        handle = _open_below(allowed, parts)
    except (FileNotFoundError, NotADirectoryError):
        raise Refusal(404, f"{key}: there is no such file in the allowed folder") from None
    except OSError:  # a link (ELOOP), a folder without permission, a name that is too long
        raise outside from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise outside
    with os.fdopen(handle, "rb") as file:
        if facts.st_size > limits.body:
            raise Refusal(413, f"{key}: the file has {facts.st_size} bytes; at most {limits.body} are accepted")
        return file.read(limits.body)


def _parts_below(text: str, allowed: Path) -> tuple[str, ...] | None:
    """The parts of a path relative to the allowed folder; None when it does not lie below it as written."""
    path = PurePosixPath(text)
    if not text or "\0" in text or ".." in path.parts or len(text) > 4096:
        return None
    if path.is_absolute():
        for root in (PurePosixPath(allowed), PurePosixPath(allowed.resolve())):
            if path.is_relative_to(root):
                return path.relative_to(root).parts or None
        return None
    return path.parts or None


def _open_below(folder: Path, parts: tuple[str, ...]) -> int:
    """A file handle, opened part by part; any link on the way raises OSError."""
    at = os.open(folder.resolve(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = below
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    finally:
        os.close(at)
