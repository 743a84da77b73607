"""The figures this project holds itself to, measured on the machine at hand: python -m bench --help."""
