"""One module a published format; `rarec.data.raw.read_raw` chooses among them."""
