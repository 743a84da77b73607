"""The figures, one function each: it measures with the given effort and yields lines of the table."""
