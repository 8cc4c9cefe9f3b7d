"""What published formats write in their own way: flags and codes in place of words, lists in place of text."""

import duckdb

from rarec.data.formats.published import AGE_GROUPS, GENRES_100K, OCCUPATIONS
from rarec.data.readers.connection import literal, quoted
from rarec.data.readers.rows import FILE, N
from rarec.data.source_spec import Role, SourceSpec

BETWEEN = {"genres": "|", "category": " > "}  # other lists are joined by commas
LISTS = ("title", "genres", "category", "author", "publisher", "location")


def finish_published(database: duckdb.DuckDBPyConnection, source: SourceSpec, role: Role) -> None:
    """Bring the columns of a table that has just been read into the form of all data sets."""
    names = [name for name, *_ in database.sql(f"DESCRIBE {role}").fetchall()]
    match source.format, role:
        case "movielens-dat" | "synthetic", "users":
            _recode(database, role, "age_group", "age", AGE_GROUPS, "CAST(NULL AS VARCHAR)")
            codes = {str(code): label for code, label in enumerate(OCCUPATIONS)}
            _recode(database, role, "occupation", "occupation", codes, "occupation")
        case "movielens-100k", "items":
            _join_flags(database)
        case "recbole" | "table", "items" if "genres" in names and source.genres_separator != "|":
            database.execute(f"UPDATE items SET genres = replace(genres, {literal(source.genres_separator)}, '|')")
        case "amazon-2014", "items":
            if "categories" in names:
                database.execute("ALTER TABLE items DROP COLUMN IF EXISTS category")
                database.execute("ALTER TABLE items RENAME COLUMN categories TO category")
            # The file lists the whole catalogue of a category of products.
            database.execute("DELETE FROM items WHERE item_id NOT IN (SELECT item_id FROM interactions)")
    if source.format in ("amazon-2014", "table") and role != "interactions":
        names = [name for name, *_ in database.sql(f"DESCRIBE {role}").fetchall()]
        for name in [name for name in names if name in LISTS]:
            _join_lists(database, role, name, BETWEEN.get(name, ", "))


def _recode(
    database: duckdb.DuckDBPyConnection, role: Role, target: str, source: str, words: dict[str, str], other: str
) -> None:
    cases = " ".join(f"WHEN {literal(code)} THEN {literal(word)}" for code, word in words.items())
    database.execute(f"ALTER TABLE {role} ADD COLUMN IF NOT EXISTS {target} VARCHAR")
    database.execute(f"UPDATE {role} SET {target} = CASE {source} {cases} ELSE {other} END")


def _join_flags(database: duckdb.DuckDBPyConnection) -> None:
    """The genre flags of u.item become one column, without "unknown"."""
    words = ", ".join(f"CASE WHEN {quoted(genre)} = '1' THEN {literal(genre)} END" for genre in GENRES_100K[1:])
    flags = ", ".join(map(quoted, GENRES_100K))
    database.execute(
        f"CREATE TABLE joined AS SELECT * EXCLUDE ({flags}), "
        f"array_to_string(list_filter([{words}], lambda w: w IS NOT NULL), '|') AS genres FROM items "
        f"ORDER BY {FILE}, {N}"
    )
    database.execute("DROP TABLE items")
    database.execute("ALTER TABLE joined RENAME TO items")


def _join_lists(database: duckdb.DuckDBPyConnection, role: Role, name: str, between: str) -> None:
    """Lists become text; of a list of lists, the first one. Python's quotes are understood, too."""
    column = f"{role}.{quoted(name)}"
    as_json = f"CASE WHEN json_valid({column}) THEN {column} ELSE replace({column}, '''', '\"') END"
    joined = f"array_to_string(from_json({{}}, '[\"VARCHAR\"]'), {literal(between)})"
    database.execute(
        f"CREATE OR REPLACE TABLE listed AS SELECT {FILE} AS f, {N} AS m, {as_json} AS found FROM {role} "
        f"WHERE {column} LIKE '[%]' AND json_valid({as_json})"
    )
    # A title may look like a list: [1984].
    database.execute(
        "CREATE OR REPLACE TABLE texts AS SELECT f, m, CASE WHEN json_array_length(found) = 0 THEN '' "
        f"WHEN json_type(found, '$[0]') = 'ARRAY' THEN {joined.format('found -> 0')} ELSE {joined.format('found')} END "
        "AS text FROM listed WHERE json_array_length(found) = 0 OR json_type(found, '$[0]') IN ('ARRAY', 'VARCHAR')"
    )
    database.execute(
        f"UPDATE {role} SET {quoted(name)} = texts.text FROM texts "
        f"WHERE {role}.{FILE} = texts.f AND {role}.{N} = texts.m"
    )
    database.execute("DROP TABLE listed; DROP TABLE texts")
