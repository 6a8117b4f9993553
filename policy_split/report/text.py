"""Texts of models and of files as a page can show them."""

import re


def visible(text: str) -> str:
    """Characters that HTML forbids or that do not show, as characters that do."""
    shown = re.sub("[\x00-\x08\x0b-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text)
    return re.sub("[\ud800-\udfff\x7f-\x9f\ufffe\uffff]", "\ufffd", shown)


def shortened(text: str, length: int = 40) -> str:
    """Its end, which is what tells runs apart."""
    return text if len(text) <= length else f"…{text[1 - length :]}"
