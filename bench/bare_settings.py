"""The node's settings without what it puts around a view: for the plain view that the API's list is held against."""

from k1node import settings as node

globals().update({name: value for name, value in vars(node).items() if name.isupper()})

ROOT_URLCONF = "bench.bare_web"
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
}
