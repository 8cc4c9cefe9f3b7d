"""One module per published format; `rarec.data.raw.read_raw` chooses among them."""
