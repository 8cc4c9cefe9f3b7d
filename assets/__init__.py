"""Asset definitions. Each asset is a short adapter around a function of rarec; computations do not belong here."""
