"""One column of ids across all tables of a data set: the same id everywhere, in one type.

An id is the text as it was written. Two texts are the same id only if the whole column is numeric and they are the same
number, or if they are ISBNs that differ in the case of their last character. What a program has destroyed is refused.
"""

from collections.abc import Iterable

import duckdb

from rarec.data.readers.connection import quoted, row_of, value_of
from rarec.errors import InputError

NUMERIC = r"[+-]?[0-9]+(\.0*)?"
SCIENTIFIC = r"[+-]?[0-9](\.[0-9]+)?[eE]\+[0-9]+"
THOUSANDS = {",": r"[0-9]{1,3}(,[0-9]{3})*", ".": r"[0-9]{1,3}(\.[0-9]{3})*"}
ISBN = r"[0-9]{9}[xX]"
DOUBLE_EXACT = 2**53
FLOAT_EXACT = 2**24
ENOUGH = 20  # ids above FLOAT_EXACT that are all exact in 32 bits: no coincidence
ADVICE = "Export ids as text or as whole numbers."


def number_of(column: str) -> str:
    """SQL for the whole number that a numeric id is, however it is written."""
    return f"TRY_CAST(regexp_replace({column}, '\\..*$', '') AS HUGEINT)"


def is_whole(column: str) -> str:
    """SQL for whether an id is a whole number in canonical form that fits into 64 bits."""
    return f"coalesce(TRY_CAST({column} AS BIGINT)::VARCHAR = {column}, false)"


def unify_ids(
    database: duckdb.DuckDBPyConnection, column: str, tables: Iterable[str], where: str, warnings: list[str]
) -> None:
    """Give the VARCHAR `column` of all `tables` one spelling per id, as BIGINT if all ids are whole numbers.

    Args:
        database: Where the tables are.
        column: `user_id` or `item_id`.
        tables: Names of the tables that have it.
        where: What an error calls the column's origin.
        warnings: Receives a sentence if spellings were unified.

    Raises:
        InputError: A spreadsheet or a float has destroyed the ids.
    """
    tables = list(tables)
    name = quoted(column)
    union = " UNION ".join(f"SELECT {name} AS id FROM {table}" for table in tables)
    database.execute("DROP TABLE IF EXISTS ids; DROP TABLE IF EXISTS spellings")
    database.execute(f"CREATE TABLE ids AS SELECT DISTINCT id FROM ({union})")
    if not (whole := _are_whole(database, "SELECT id FROM ids")):
        refuse_destroyed(database, f"{where}: {column}")
        _find_spellings(database, column, warnings)
        for table in tables:
            database.execute(
                f"UPDATE {table} SET {name} = spellings.chosen FROM spellings WHERE {table}.{name} = spellings.written"
            )
        whole = _are_whole(database, "SELECT coalesce(chosen, id) AS id FROM ids LEFT JOIN spellings ON id = written")
    if whole:
        for table in tables:  # DuckDB converts deleted rows, too, so a conversion that may fail is needed
            database.execute(f"ALTER TABLE {table} ALTER {name} TYPE BIGINT USING TRY_CAST({name} AS BIGINT)")
    database.execute("DROP TABLE IF EXISTS ids; DROP TABLE IF EXISTS spellings")


def _are_whole(database: duckdb.DuckDBPyConnection, ids: str) -> bool:
    """Whether all ids are whole numbers in canonical form that fit into 64 bits."""
    whole = is_whole("id")
    return bool(value_of(database, f"SELECT coalesce(bool_and({whole}), false) FROM ({ids})"))


def _find_spellings(database: duckdb.DuckDBPyConnection, column: str, warnings: list[str]) -> None:
    """A table `spellings` with the chosen spelling of each id that is not written so."""
    numeric = f"coalesce(bool_and(regexp_full_match(id, '{NUMERIC}')), false)"
    number = number_of("id")
    (all_numeric, with_point, numbers, written, none) = row_of(
        database,
        f"SELECT {numeric}, bool_or(contains(id, '.')), count(DISTINCT {number}), count(*), bool_or({number} IS NULL) "
        "FROM ids",
    )
    if all_numeric and not none and (with_point or numbers < written):
        database.execute(
            f"CREATE TABLE spellings AS SELECT id AS written, {number}::VARCHAR AS chosen FROM ids "
            f"WHERE id != {number}::VARCHAR"
        )
        if numbers < written:
            what, count = "numbers are written in several ways", written - numbers
        else:
            what, count = (
                "whole numbers are written with a decimal point, as pandas does if a value is missing",
                written,
            )
        (example, chosen) = row_of(database, "SELECT written, chosen FROM spellings ORDER BY written LIMIT 1")
        warnings.append(f"{column}: {count:,} {what} (first: {example!r}); each number is one id, here {chosen!r}.")
        return
    database.execute(
        f"CREATE TABLE spellings AS SELECT id AS written, upper(id) AS chosen FROM ids "
        f"WHERE regexp_full_match(id, '{ISBN}') AND id != upper(id) AND upper(id) IN (SELECT id FROM ids)"
    )
    count = value_of(database, "SELECT count(*) FROM spellings")
    if count:
        example = value_of(database, "SELECT min(written) FROM spellings")
        warnings.append(
            f"{column}: {count:,} ISBNs are written with x and with X (first: {example!r}); each is one id."
        )


def refuse_destroyed(database: duckdb.DuckDBPyConnection, what: str) -> None:
    """Raise InputError if the table `ids` has an `id` that a spreadsheet or a float has destroyed.

    Args:
        database: Where the table is.
        what: Names the file and the column in the error.
    """

    def first(condition: str) -> str | None:
        found = value_of(database, f"SELECT min(id) FROM ids WHERE {condition}")
        return None if found is None else str(found)

    if (found := first(f"regexp_full_match(id, '{SCIENTIFIC}')")) is not None:
        raise InputError(f"{what} {found!r} was rounded by a spreadsheet or a float, so ids are lost. {ADVICE}")
    for mark, pattern in THOUSANDS.items():
        (all_match, grouped, long) = row_of(
            database,
            f"SELECT bool_and(regexp_full_match(id, '{pattern}') OR regexp_full_match(id, '[0-9]+')), "
            f"min(id) FILTER (contains(id, '{mark}')), bool_or(NOT contains(id, '{mark}') AND length(id) > 3) FROM ids",
        )
        if all_match and grouped and (mark == "," or not long):
            raise InputError(f"{what} {grouped!r} has a separator of thousands. {ADVICE}")
    number = number_of("id")
    pointed = r"regexp_full_match(id, '[+-]?[0-9]+\.0*')"
    if (found := first(f"{pointed} AND abs({number}) >= {DOUBLE_EXACT}")) is not None:
        raise InputError(f"{what} {found!r} was rounded by a float, which keeps 15 digits, so ids are lost. {ADVICE}")
    (large, exact, tens) = row_of(
        database,
        f"SELECT count(*), bool_and(CAST(CAST({number} AS FLOAT) AS HUGEINT) = {number}), bool_and({number} % 10 = 0) "
        f"FROM ids WHERE {pointed} AND abs({number}) > {FLOAT_EXACT}",
    )
    if large >= ENOUGH and exact and not tens:
        raise InputError(
            f"{what}: all {large} ids above {FLOAT_EXACT:,} are exact in 32-bit floats, which keep 7 digits, so ids "
            f"are lost. {ADVICE}"
        )
