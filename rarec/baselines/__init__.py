"""What every model has to beat: simple methods, and models of other libraries on the same splits."""
