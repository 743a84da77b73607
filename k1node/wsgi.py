"""Django as a WSGI application, for servers that bring their own threads. Bodies are bounded by that server."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "k1node.settings")

application = get_wsgi_application()
