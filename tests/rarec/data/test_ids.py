import pandas as pd

from rarec.data.ids import IdLookup


def test_ids_are_found_as_numbers_and_as_text_and_unknown_ones_are_told():
    assert IdLookup(pd.Series([7, 3, 12])).rows([3, "12", 7, "x", None]).tolist() == [1, 2, 0, -1, -1]
    assert IdLookup(pd.Series(["a", "7"])).rows(["7", 7, "a", ""]).tolist() == [1, 1, 0, -1]
    assert IdLookup(pd.Series(["a"])).rows([]).tolist() == []
