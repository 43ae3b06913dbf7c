"""The images that a text file lists, with labels where it has them. Imports nothing heavy."""

import csv
import os

from resa_jax.data.folder import Folder
from resa_jax.errors import UserError


_PATH_HEADS, _LABEL_HEADS = ("path", "image", "file", "filename"), ("label", "class")


def read_list(path: str) -> Folder:
    """The images of a list, in its order, with paths relative to the list's folder or absolute.

    A `.csv` file has a first line of column names, among them `path` (or image, file, filename)
    and, where there are labels, `label` (or class); other columns do not matter. Of any other file
    each line is a path. Blank lines do not count. Classes are numbered in the order of their names,
    of their numbers where all are numbers.

    Raises:
      UserError: no such file, not in UTF-8, without a column or a path, a label that is missing, or
        an image that is not there (names the line).
    """
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise UserError(f"list:{path}: the path {what}.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows, labelled = _csv_rows(path, file) if path.endswith(".csv") else _lines(file)
    except UnicodeDecodeError as error:
        raise UserError(
            f"list:{path} is not in UTF-8 ({error.reason}, byte {error.start}); save it so."
        ) from error
    except csv.Error as error:
        raise UserError(f"list:{path} cannot be read as CSV: {error}.") from error
    if not rows:
        raise UserError(f"list:{path} names no image; write one path a line.")
    root = os.path.dirname(path)
    for line, name, _ in rows:
        if not os.path.isfile(os.path.join(root, name)):
            raise UserError(
                f"list:{path}, line {line}: there is no file {os.path.join(root, name)}. Paths are "
                "relative to the list's folder."
            )
    names = [name for _, name, _ in rows]
    if not labelled:
        return Folder(root, names, None, (), [])
    unlabelled = [line for line, _, label in rows if not label]
    if unlabelled:
        raise UserError(
            f"list:{path}, line {unlabelled[0]}: the label is empty. Label all images, or leave "
            "the column out."
        )
    classes = {label for _, _, label in rows}
    whole = all(label.isascii() and label.isdigit() for label in classes)
    # Of numbers without leading zeros the longer one is larger, whatever int() may take.
    by_number = sorted(
        classes, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)
    )
    class_names = tuple(by_number if whole else sorted(classes))
    numbers = {name: label for label, name in enumerate(class_names)}
    return Folder(root, names, [numbers[label] for _, _, label in rows], class_names, [])


def _lines(file) -> tuple[list[tuple[int, str, str]], bool]:
    lines = ((number, line.strip()) for number, line in enumerate(file, 1))
    return [(number, line, "") for number, line in lines if line], False


def _csv_rows(path, file) -> tuple[list[tuple[int, str, str]], bool]:
    """Line, path and label of each row, and whether there are labels."""
    reader = csv.reader(file, strict=True)
    heads = [head.strip().lower() for head in next(reader, [])]
    name, label = (
        next((heads.index(head) for head in known if head in heads), None)
        for known in (_PATH_HEADS, _LABEL_HEADS)
    )
    if name is None:
        raise UserError(
            f"list:{path} has no column `path` in its first line; it has "
            f"{', '.join(map(repr, heads)) or 'nothing'}. A list without names is a .txt file."
        )
    rows = []
    for row in reader:
        if not any(row):
            continue
        if len(row) != len(heads):
            raise UserError(
                f"list:{path}, line {reader.line_num}: {len(row)} fields, where the first line "
                f"names {len(heads)}. A path with a comma stands in quotation marks."
            )
        rows.append((reader.line_num, row[name], "" if label is None else row[label].strip()))
    return rows, label is not None
