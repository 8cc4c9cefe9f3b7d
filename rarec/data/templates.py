"""How prompts are worded: one template for each domain, so that the prompts of a data set differ only in their content.

A prompt has a profile (if anything is known of the user), a heading, one line per behaviour, and a question. The
question ends like the beginning of a behaviour's line, so the model finds the answer where it learned to find a rating.
Lines are made of columns of the clean tables; a missing value leaves its piece out.
"""

from collections.abc import Sequence
from string import Formatter

import pandas as pd
from pydantic import Field, model_validator

from rarec.config import Settings
from rarec.errors import InputError

ITEM_COLUMNS = ("title", "genres", "category", "author", "publisher", "year", "item_id")
USER_COLUMNS = ("gender", "age_group", "age", "occupation", "location", "zip_code")


class Piece(Settings):
    """Words around a column's value; nothing if the value is missing."""

    column: str = Field(description="Column of the item or user table.")
    text: str = Field(default="{}", description="The words, with {} for the value.")
    unless: str | None = Field(default=None, description="Leave the piece out if this column has a value.")

    @model_validator(mode="after")
    def _consistent(self) -> "Piece":
        if self.text.count("{}") != 1:
            raise ValueError(f"`text` must contain {{}} once, for the value of {self.column!r}; it is {self.text!r}")
        return self


class Template(Settings):
    """How prompts of one domain are worded."""

    profile: tuple[Piece, ...] = Field(default=(), description="Pieces of the profile line, joined by commas.")
    profile_line: str = Field(default="{}\n", description="The profile line, with {} for the pieces.")
    heading: str = Field(description="The line above the history.")
    behaviour: str = Field(description="One behaviour, with {item} and {rating}.")
    question: str = Field(description="The question, with {item}. The answer follows directly.")
    item: tuple[Piece, ...] = Field(description="An item's name in prompts: pieces, joined without a space.")
    description: tuple[Piece, ...] = Field(description="The text behind an item's vector: pieces, joined likewise.")
    yes: str = Field(default="Yes", description="The answer if the user likes the item.")
    no: str = Field(default="No", description="The answer if not.")

    @model_validator(mode="after")
    def _consistent(self) -> "Template":
        for name, needed in (("profile_line", [""]), ("question", ["item"]), ("behaviour", ["item", "rating"])):
            text = getattr(self, name)
            try:
                fields = sorted(field for _, field, _, _ in Formatter().parse(text) if field is not None)
            except ValueError as error:
                raise ValueError(f"`{name}` = {text!r}: {error}") from error
            if fields != needed:
                wanted = " and ".join(f"{{{field}}}" for field in needed)
                raise ValueError(f"`{name}` must contain {wanted} once, and nothing else in braces; it is {text!r}")
        if self.yes == self.no:
            raise ValueError(f"`yes` and `no` are the same word, {self.yes!r}")
        for name, known in (("profile", USER_COLUMNS), ("item", ITEM_COLUMNS), ("description", ITEM_COLUMNS)):
            named = [column for piece in getattr(self, name) for column in (piece.column, piece.unless) if column]
            unknown = [column for column in named if column not in known]
            if unknown:
                raise ValueError(f"`{name}` names an unknown column {unknown[0]!r}; known: {', '.join(known)}")
        for name in ("item", "description"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` needs at least one piece")
        return self


def _piece(column: str, text: str = "{}") -> Piece:
    return Piece(column=column, text=text)


_PERSON = (
    _piece("gender", "gender {}"),
    _piece("age_group", "age {}"),
    Piece(column="age", text="{} years old", unless="age_group"),  # ml-1m's ages are codes for groups
    _piece("occupation"),
    _piece("location", "from {}"),
)
_TITLE_YEAR = (_piece("title"), _piece("year", " ({})"))

TEMPLATES: dict[str, Template] = {
    "movies": Template(
        profile=_PERSON,
        profile_line="A viewer: {}.\n",
        heading="Films they have rated, from the oldest to the latest:\n",
        behaviour="{item}: {rating}\n",
        question="Will they like the next film? Yes or No.\n{item}:",
        item=_TITLE_YEAR,
        description=(*_TITLE_YEAR, _piece("genres", ": {}")),
    ),
    "books": Template(
        profile=_PERSON,
        profile_line="A reader: {}.\n",
        heading="Books they have rated, from the first to the last:\n",
        behaviour="{item}: {rating}\n",
        question="Will they like the next book? Yes or No.\n{item}:",
        item=(_piece("title"), _piece("author", " by {}")),
        description=(
            _piece("title"),
            _piece("author", " by {}"),
            _piece("item_id", ": ISBN {}"),
            _piece("year", ", {}"),
            _piece("publisher", ", {}"),
        ),
    ),
    "products": Template(
        profile=_PERSON,
        profile_line="A customer: {}.\n",
        heading="Products they have rated, from the oldest to the latest:\n",
        behaviour="{item}: {rating}\n",
        question="Will they like the next product? Yes or No.\n{item}:",
        item=(_piece("title"),),
        description=(_piece("title"), _piece("category", ": {}")),
    ),
}


def find_template(domain: str, own: Template | None = None) -> Template:
    """The data set's own template, else that of its domain.

    Raises:
        InputError: There is neither.
    """
    if own is not None:
        return own
    if domain not in TEMPLATES:
        raise InputError(
            f"there is no prompt template for the domain {domain!r} (known: {', '.join(TEMPLATES)}); add a [template] "
            "to the data set's file"
        )
    return TEMPLATES[domain]


def item_texts(items: pd.DataFrame, pieces: Sequence[Piece]) -> list[str]:
    """One text per item.

    Raises:
        InputError: An item has no value in any of the columns that the pieces name.
    """
    texts = _join(items, pieces, "")
    empty = [row for row, text in enumerate(texts) if not text.strip()]
    if empty:
        names = ", ".join(piece.column for piece in pieces)
        raise InputError(
            f"{len(empty)} items have no text (first: item_id {items['item_id'].iloc[empty[0]]}): {names} are all "
            "missing; complete the item file, or use another column in the template"
        )
    return texts


def profile_texts(users: pd.DataFrame, template: Template) -> list[str]:
    """One profile line per user; empty if nothing is known of them."""
    return [template.profile_line.format(text) if text else "" for text in _join(users, template.profile, ", ")]


def wording(part: str | tuple[Piece, ...]) -> str:
    """A part of a template as people read it, with the columns in braces."""
    return (
        part if isinstance(part, str) else ", ".join(piece.text.replace("{}", f"{{{piece.column}}}") for piece in part)
    )


def rating_text(rating: float) -> str:
    """A rating as people write it: 4, 3.5."""
    return f"{rating:g}"


def _join(table: pd.DataFrame, pieces: Sequence[Piece], between: str) -> list[str]:
    columns = []
    for piece in pieces:
        before, behind = piece.text.split("{}")
        values = table[piece.column]
        known = values.notna()
        if piece.unless is not None:
            known &= table[piece.unless].isna()
        columns.append(
            [
                f"{before}{str(value).replace('|', ', ')}{behind}" if is_known else ""
                for value, is_known in zip(values.tolist(), known.tolist(), strict=True)
            ]
        )
    return [between.join(filter(None, row)) for row in zip(*columns, strict=True)] if columns else [""] * len(table)
