"""Which adapter folders clients may name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from loradesk_engine.serving.http.refusal import Refusal


def allowed_folder(given: str, roots: Sequence[str]) -> Path:
    """The folder that a client means, below one of the roots after all links are followed.

    A path outside is refused in the same words whether or not there is something: clients are not told what lies on
    the disk. Ids of hub repositories are not looked up.

    Raises:
        Refusal: 403 outside of the roots or without any, 400 not there.
    """
    if not roots:
        raise Refusal(
            403,
            "This server loads no adapters for clients. Start it with --adapter-root FOLDER to allow those below it.",
            param="lora_path",
            code="adapter_loading_disabled",
        )
    inside = False
    for root in roots:
        top = Path(os.path.realpath(root))
        try:
            found = Path(os.path.realpath(top / given))
            if found != top and found.is_relative_to(top):
                inside = True
                if found.is_dir():
                    return found
        except (ValueError, OSError):  # a null byte, too long a name, half a character
            raise Refusal(400, "This is not a path.", param="lora_path", code="invalid_value") from None
    if inside:
        raise Refusal(400, "There is no such folder.", param="lora_path", code="invalid_value")
    raise Refusal(
        403,
        "The path is not below the folders from which this server loads adapters.",
        param="lora_path",
        code="path_not_allowed",
    )
