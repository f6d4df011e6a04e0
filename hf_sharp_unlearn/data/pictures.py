"""From a cell of a table to the picture that a model's processor takes: the one place where pictures are opened.

They are turned as their EXIF orientation says. More than 8 bits a channel are scaled to 8: 16-bit pictures by their
range; 32-bit ones, whole numbers or floats, by what they hold. Transparent ones are laid on white. What cannot be
opened is named by file, row and cause.
"""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

REMEDY = " Repair it, or leave it out (unlearn does with --skip_bad)."


@dataclass(frozen=True)
class Pictures:
    """Opens the cells of a column of pictures (as `datasets` keeps them, or PIL images) as "RGB" or "L".

    source: the column's table, undecoded; it tells the row of a picture that cannot be opened, where the caller does
    not. (A class, so that other processes can have it.)
    """

    mode: str
    image: str
    source: Any = field(default=None, repr=False, compare=False)

    def __call__(self, cells: Sequence[Any], rows: Iterable[int] | None = None) -> list[Any]:
        """PIL images. rows: where the cells stand in the table. Raises ValueError for what is no whole picture."""
        opened, numbers = [], [None] * len(cells) if rows is None else list(rows)
        for cell, row in zip(cells, numbers, strict=True):
            try:
                opened.append(self._open(cell, row))
            except Exception as error:  # whatever a decoder makes of a broken file
                why = re.sub("<_io.*?>", "", " ".join(str(error).split())).strip(" .") or type(error).__name__
                raise ValueError(f"Picture {self._where(cell, row)}: {why}.{REMEDY}") from error
        return opened

    def faults(self, cells: Iterable[Any]) -> Iterator[str | None]:
        """Of each cell what keeps it from being opened; None for nothing."""
        for row, cell in enumerate(cells):
            try:
                self([cell], [row])
            except ValueError as error:
                yield str(error).removesuffix(REMEDY)
            else:
                yield None

    def _open(self, cell: Any, row: int | None) -> Any:
        import datasets
        from PIL.Image import DecompressionBombWarning

        if cell is None:
            raise ValueError("there is none, the cell is empty")
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", DecompressionBombWarning)
            picture = datasets.Image().decode_example(_in_memory(cell)) if isinstance(cell, dict | str) else cell
            made = eight_bit(picture, self.mode)
        for warning in heard:  # Pillow does not say which picture is so large
            text = f"{warning.message}"
            if issubclass(warning.category, DecompressionBombWarning):
                text = f"Picture {self._where(cell, row)}: {text}"
            warnings.warn(text, warning.category, stacklevel=4)
        return made

    def _where(self, cell: Any, row: int | None) -> str:
        path = cell.get("path") if isinstance(cell, dict) else cell if isinstance(cell, str) else None
        if row is None and self.source is not None:
            row = next((n for n, other in enumerate(cells_in(self.source, self.image)) if other == cell), None)
        place = [f"in row {row}"] if row is not None else []
        return ", ".join(([repr(path)] if path else []) + place) or "of unknown name"


def _in_memory(cell: dict | str) -> dict:
    """With the file's bytes, if it is here: a decoder that fails would leave the file open."""
    cell = {"bytes": None, "path": cell} if isinstance(cell, str) else cell
    if cell.get("bytes") is None and cell.get("path") and os.path.isfile(cell["path"]):
        with open(cell["path"], "rb") as file:
            return {**cell, "bytes": file.read()}
    return cell


def undecoded(data: Any, image: str) -> Any:
    """The table with its pictures as they are stored, so that they are opened here; as it is if it has a transform."""
    import datasets

    feature = data.features.get(image)
    if isinstance(feature, datasets.Image) and feature.decode and data.format["type"] is None:
        return data.cast_column(image, datasets.Image(decode=False))
    return data


def cells_in(data: Any, image: str, batch_size: int = 256) -> Iterator[Any]:
    """The pictures of an undecoded table, one by one: they do not all fit into memory."""
    column = data.with_format(None).select_columns([image])
    for low in range(0, len(column), batch_size):
        yield from column[low : low + batch_size][image]


def eight_bit(picture: Any, mode: str) -> Any:
    """A PIL image turned upright and as "RGB" or "L". Raises ValueError for values whose range is not known."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray(_scaled(np.asarray(picture, dtype=np.float64), 65535))
    elif picture.mode in ("I", "F"):
        values = np.asarray(picture, dtype=np.float64)
        tops = (255, 65535) if picture.mode == "I" else (1, 255)
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        top = next((top for top in tops if high <= top), None)
        if not low >= 0 or top is None:  # not: nan compares with nothing
            kind = "whole numbers" if picture.mode == "I" else "floats"
            raise ValueError(
                f"its {kind} go from {low:g} to {high:g}: must lie in 0 to {tops[0]}, or 0 to {tops[1]}, to be scaled "
                "to 8 bits"
            )
        picture = Image.fromarray(_scaled(values, top))
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if picture.getextrema()[3][0] < 255:
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert(mode)


def _scaled(values: np.ndarray, top: int) -> np.ndarray:
    return np.rint(values * (255 / top)).astype(np.uint8)
