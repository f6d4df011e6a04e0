"""What a word says: a number, a moment, true or false, or itself."""

import datetime
import re
import unicodedata
from decimal import Decimal
from typing import Any

# What readers of CSV files take for an empty cell: somebody who asks for such a word means cells that are gone.
READ_AS_EMPTY = {"", "na", "n/a", "#n/a", "#na", "nan", "-nan", "null", "none", "<na>", "1.#ind", "1.#qnan"}
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,6})?")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def number(text: str) -> int | Decimal | None:
    """The number that a text is, exactly; whole numbers are int. None if it is none (nan and inf are none)."""
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        return None
    value = Decimal(text)
    return int(value) if value.adjusted() < 400 and value == value.to_integral_value() else value


def moment(text: str) -> datetime.datetime | None:
    """The moment that an ISO date is, 2024-01-31 or 2024-01-31T12:00:00+01:00. None if it is none."""
    text = text.strip()
    if not _DAY.match(text) or text[10:11] not in ("", "T", " ") or re.search("[.,][0-9]{7}", text):
        return None  # beyond microseconds, Python would cut digits off
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def spelled(text: str) -> Any:
    """What is equal for words that say the same in other letters: 3 and 3.0, true and True, a blank at an end."""
    text = unicodedata.normalize("NFC", text.strip())
    for read in (number, moment):
        if (found := read(text)) is not None:
            return found
    return text.lower() if text.lower() in ("true", "false") else text
