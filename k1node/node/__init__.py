"""One node as processes: what `manage.py up` starts, watches, replaces and ends. Wiring: only commands import it."""
