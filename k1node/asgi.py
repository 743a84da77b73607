"""The web process's application: the guard, and behind it Django on a few threads.

Django runs as WSGI inside the ASGI server: its own ASGI handler is several times slower for code that is not async,
and opens a database connection for each request. Here every thread keeps its one (CONN_MAX_AGE is None).
"""

import os

from a2wsgi import WSGIMiddleware
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "k1node.settings")

# Requests in work at one time, and so the database connections of this process.
THREADS = 8

_django = get_wsgi_application()

from k1node.api.guard import Guard  # noqa: E402

application = Guard(WSGIMiddleware(_django, workers=THREADS))  # type: ignore[arg-type]
