"""One settings file. Every value an operator may set comes from the environment, through loud helpers."""

import os
from datetime import UTC, datetime, timedelta
from email.utils import parseaddr
from pathlib import Path
from typing import Any

from django.conf import global_settings
from django.core.exceptions import ImproperlyConfigured

from k1node.access import issuers
from k1node.access.scopes import DESCRIPTIONS
from k1node.lib import keyring, secrets, sunset
from k1node.lib.env import env_bool, env_choice, env_date, env_duration, env_int, env_list, env_networks, env_str

BASE_DIR = Path(__file__).resolve().parent.parent

# --- where and how this node runs -------------------------------------------------------------------------------
PRODUCTION = env_choice("NODE_ENV", "development", ("development", "test", "production")) == "production"
DEBUG = False
PORT = env_int("PORT", 3000, low=1, high=65535)
# Development listens on the loopback only.
K1NODE_BIND = env_str("K1NODE_BIND", "0.0.0.0" if PRODUCTION else "127.0.0.1")  # noqa: S104
K1NODE_DATA = Path(env_str("K1NODE_DATA", str(BASE_DIR / "data"))).resolve()
K1NODE_DATA.mkdir(mode=0o700, parents=True, exist_ok=True)
# Which process of the node this is: web, worker, clock, sender, or "" for a command. Decides durability and log fields.
K1NODE_ROLE = env_str("K1NODE_ROLE")
# A 2xx of the web survives power loss. What these do not hear of then, they do once more.
AT_LEAST_ONCE = K1NODE_ROLE in ("worker", "clock", "sender")

# Several nodes on one PostgreSQL must share their secrets, so a node must not make up its own there.
SECRET_KEY = secrets.required("SECRET_KEY", K1NODE_DATA, production=PRODUCTION or bool(env_str("DB_HOST")))
# Seals the audit log: whoever can write to the database must not know it.
K1NODE_AUDIT_KEY = secrets.required("K1NODE_AUDIT_KEY", K1NODE_DATA, production=PRODUCTION or bool(env_str("DB_HOST")))
# The first key encrypts what must be read again (secrets of webhooks), any of them decrypts.
K1NODE_KEYRING = [
    key.strip()
    for key in secrets.required(
        "K1NODE_KEYRING", K1NODE_DATA, production=PRODUCTION or bool(env_str("DB_HOST")), make=keyring.new_key
    ).split(",")
    if key.strip()
]
keyring.check(K1NODE_KEYRING)
ALLOWED_HOSTS = env_list("ALLOWED_HOSTS")
if PRODUCTION and not ALLOWED_HOSTS:
    raise ImproperlyConfigured("ALLOWED_HOSTS must name the hosts this node answers to when NODE_ENV=production.")
# The node's own handlers and probes ask it by these names.
ALLOWED_HOSTS += ["localhost", "127.0.0.1", "[::1]"]

# --- limits of this machine -------------------------------------------------------------------------------------
K1NODE_MAX_CONCURRENT = env_int("K1NODE_MAX_CONCURRENT", 4, low=1, high=60)  # tasks running at the same time
K1NODE_WORKERS = env_int("K1NODE_WORKERS", K1NODE_MAX_CONCURRENT, low=1, high=60)  # worker processes
K1NODE_MAX_CPU_PERCENT = env_int("K1NODE_MAX_CPU_PERCENT", 80, low=1, high=100)  # 100 means no limit
K1NODE_MAX_MEMORY_PERCENT = env_int("K1NODE_MAX_MEMORY_PERCENT", 85, low=1, high=100)  # 100 means no limit
K1NODE_DRAIN_SECONDS = env_int("K1NODE_DRAIN_SECONDS", 20, low=0)  # running commands get this long at a stop
K1NODE_KILL_GRACE_SECONDS = env_int("K1NODE_KILL_GRACE_SECONDS", 5, low=0)  # between TERM and KILL

# --- handlers ---------------------------------------------------------------------------------------------------
_root = env_str("K1NODE_HANDLER_ROOT")
# None: the project folder is the root, and only what lies under ops/ may run.
K1NODE_HANDLER_ROOT = Path(_root).resolve() if _root else None
K1NODE_HANDLER_INTERPRETERS = env_list("K1NODE_HANDLER_INTERPRETERS", "bash,sh,python3")
K1NODE_HANDLER_ENV = env_list("K1NODE_HANDLER_ENV")  # names passed on to commands
K1NODE_HANDLER_MODULES = env_list("K1NODE_HANDLER_MODULES")  # Python modules that register handlers

# --- mail, for notices; nothing is sent without EMAIL_HOST ------------------------------------------------------
EMAIL_HOST = env_str("EMAIL_HOST")
EMAIL_HOST_USER = env_str("EMAIL_HOST_USER")
EMAIL_HOST_PASSWORD = os.environ.get("EMAIL_HOST_PASSWORD", "")
EMAIL_USE_SSL = env_bool("EMAIL_USE_SSL", False)  # TLS from the first byte
# STARTTLS; a password does not go through the network in the clear unless that is wished for.
EMAIL_USE_TLS = env_bool("EMAIL_USE_TLS", bool(EMAIL_HOST_USER) and not EMAIL_USE_SSL)
if EMAIL_USE_SSL and EMAIL_USE_TLS:
    raise ImproperlyConfigured("EMAIL_USE_TLS and EMAIL_USE_SSL exclude each other: use TLS for port 587, SSL for 465.")
EMAIL_PORT = env_int("EMAIL_PORT", 465 if EMAIL_USE_SSL else 587 if EMAIL_USE_TLS else 25, low=1, high=65535)
EMAIL_TIMEOUT = 10  # seconds that the server may take for one answer
DEFAULT_FROM_EMAIL = env_str("DEFAULT_FROM_EMAIL", EMAIL_HOST_USER if "@" in EMAIL_HOST_USER else "k1node@localhost")
if "@" not in parseaddr(DEFAULT_FROM_EMAIL)[1]:
    raise ImproperlyConfigured(f"DEFAULT_FROM_EMAIL must be an e-mail address, not {DEFAULT_FROM_EMAIL!r}.")
# Where people reach this node's console, for links in mails; without one a mail has none.
K1NODE_URL = env_str("K1NODE_URL").rstrip("/")
if K1NODE_URL and not K1NODE_URL.startswith(("http://", "https://")):
    raise ImproperlyConfigured(f"K1NODE_URL must begin with http:// or https://, not {K1NODE_URL!r}.")

# --- retention, in days -----------------------------------------------------------------------------------------
K1NODE_KEEP_TASK_DAYS = env_int("K1NODE_KEEP_TASK_DAYS", 30, low=1)  # tasks, attempts, output, slots
K1NODE_KEEP_DEAD_LETTER_DAYS = env_int("K1NODE_KEEP_DEAD_LETTER_DAYS", 90, low=1)  # archived and resubmitted ones
K1NODE_KEEP_EVENT_DAYS = env_int("K1NODE_KEEP_EVENT_DAYS", 7, low=1)
K1NODE_KEEP_AUDIT_DAYS = env_int("K1NODE_KEEP_AUDIT_DAYS", 365, low=1)
K1NODE_KEEP_DELIVERY_DAYS = env_int("K1NODE_KEEP_DELIVERY_DAYS", 14, low=1)  # deliveries to webhooks, and what was sent

# --- webhooks ---------------------------------------------------------------------------------------------------
WEBHOOK_TIMEOUT_MS = env_int("WEBHOOK_TIMEOUT_MS", 30_000, low=100, high=120_000)  # for all of a request
WEBHOOK_MAX_RETRIES = env_int("WEBHOOK_MAX_RETRIES", 3, low=0, high=100)  # of webhooks that do not say
# Loopback and private addresses, plain HTTP and any port, but no metadata service.
WEBHOOK_ALLOW_PRIVATE = env_bool("WEBHOOK_ALLOW_PRIVATE", False)
WEBHOOK_ALLOWED_CIDRS = env_networks("WEBHOOK_ALLOWED_CIDRS")  # the same for these networks
WEBHOOK_CA_FILE = env_str("WEBHOOK_CA_FILE")  # certificates that are trusted beside the system's

# --- rate limits: of each key, user and unauthenticated address --------------------------------------------------
RATE_LIMIT_REQUESTS = env_int("RATE_LIMIT_REQUESTS", 1000, low=1, high=10_000_000)  # in the window
RATE_LIMIT_WINDOW_MS = env_int("RATE_LIMIT_WINDOW_MS", 3_600_000, low=1000, high=86_400_000)
RATE_LIMIT_BURST = env_int("RATE_LIMIT_BURST", 100, low=1, high=10_000_000)  # in a minute

# --- the application --------------------------------------------------------------------------------------------
INSTALLED_APPS = [
    "k1node",
    "k1node.events",
    "k1node.access",
    "k1node.audit",
    "k1node.api",
    "k1node.operations",
    "scheduling",
    "recovery",
    "webhooks",
    "batches",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_q",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "oauth2_provider",
    "django_ratelimit",
]
MIDDLEWARE = [
    "k1node.api.middleware.RequestIdMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "k1node.api.middleware.VersionMiddleware",
    "k1node.api.middleware.RateLimitMiddleware",
    "k1node.api.middleware.NulMiddleware",
    "k1node.access.middleware.QueryCredentialMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "k1node.audit.middleware.OperatorMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "k1node.urls"
WSGI_APPLICATION = "k1node.wsgi.application"
APPEND_SLASH = True  # for the admin's pages; the API has no trailing slashes
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
USE_I18N = False

# --- database: SQLite in K1NODE_DATA unless DB_HOST names a PostgreSQL ------------------------------------------
DATABASES: dict[str, dict[str, Any]]
if env_str("DB_HOST"):
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": env_str("DB_HOST"),
            "PORT": env_str("DB_PORT", "5432"),
            "NAME": env_str("DB_NAME", "k1node"),
            "USER": env_str("DB_USER", "postgres"),
            "PASSWORD": os.environ.get("DB_PASSWORD", ""),
            "CONN_MAX_AGE": None,
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {
                "connect_timeout": 5,
                "options": "-c synchronous_commit=" + ("off" if AT_LEAST_ONCE else "on"),
                "application_name": f"k1node {K1NODE_ROLE}".strip(),
                # A server that vanished without a word is noticed in seconds, not in the kernel's quarter of an hour.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 15_000,  # ms
            },
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "k1node.lib.sqlite",
            "NAME": K1NODE_DATA / "k1node.sqlite3",
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": (
                    "PRAGMA journal_mode=WAL;"
                    f"PRAGMA synchronous={'NORMAL' if AT_LEAST_ONCE else 'FULL'};"
                    "PRAGMA temp_store=MEMORY;"
                    "PRAGMA cache_size=-16000;"
                    "PRAGMA mmap_size=268435456;"
                    "PRAGMA wal_autocheckpoint=8000;"  # pages; a checkpoint every 1000 costs a fifth of the throughput
                    "PRAGMA journal_size_limit=67108864;"
                ),
            },
        }
    }

# Counts of attempts to sign in. Its own small file on SQLite, an unlogged table on PostgreSQL.
CACHES = {"default": {"BACKEND": "k1node.lib.sql_cache.SqlCache", "LOCATION": K1NODE_DATA / "cache.sqlite3"}}

# --- django-q2: the host of the worker processes, nothing else (see k1node/broker.py) ----------------------------
Q_CLUSTER = {
    "name": "k1node",
    "broker_class": "k1node.broker.TaskBroker",
    "workers": K1NODE_WORKERS,
    "queue_limit": K1NODE_WORKERS,
    "save_limit": -1,
    "scheduler": False,
    "timeout": 86400,
    "retry": 86401,
    "recycle": 1_000_000,
    "max_rss": 600_000,  # kB; a worker above it is replaced between two tokens
    "daemonize_workers": False,
    "log_level": "WARNING",
    "label": "Workers",
    "catch_up": False,
}

# --- security ---------------------------------------------------------------------------------------------------
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
PASSWORD_HASHERS = [*global_settings.PASSWORD_HASHERS, "k1node.access.oauth.client_secrets.RandomSecretHasher"]
LOGIN_URL = "admin:login"
RATELIMIT_IP_META_KEY = "k1node.access.slowing.address_of"
# W001: it knows no cache but memcached's and django-redis'. Ours counts exactly across processes; tests prove it.
SILENCED_SYSTEM_CHECKS = ["django_ratelimit.W001"]
# TLS ends at the proxy in front of the node; without one, say K1NODE_HTTPS=0 and know why.
HTTPS = env_bool("K1NODE_HTTPS", PRODUCTION)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^api/", r"^healthz$", r"^readyz$"]
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
# Proxies in front that append to X-Forwarded-For; the client's address is read from behind them. 0: from no header.
K1NODE_TRUSTED_PROXIES = env_int("K1NODE_TRUSTED_PROXIES", 1 if HTTPS else 0, low=0, high=10)
# The first signs tokens, the others are still good for those signed before: at most two, until what they signed ends.
JWT_SECRET = secrets.required("JWT_SECRET", K1NODE_DATA, production=PRODUCTION or bool(env_str("DB_HOST")))
JWT_SECRET_PREVIOUS = env_list("JWT_SECRET_PREVIOUS")
secrets.check_signing_key("JWT_SECRET", JWT_SECRET, others={"SECRET_KEY": SECRET_KEY})
if len(JWT_SECRET_PREVIOUS) > 2:
    raise ImproperlyConfigured("JWT_SECRET_PREVIOUS must name at most two secrets, with a comma between them.")
for _secret in JWT_SECRET_PREVIOUS:
    secrets.check_signing_key(
        "JWT_SECRET_PREVIOUS", _secret, others={"SECRET_KEY": SECRET_KEY, "JWT_SECRET": JWT_SECRET}
    )
JWT_EXPIRY = env_duration("JWT_EXPIRY", timedelta(hours=24), low=timedelta(minutes=1), high=timedelta(days=7))
JWT_REFRESH_EXPIRY = env_duration(
    "JWT_REFRESH_EXPIRY", timedelta(days=30), low=timedelta(minutes=5), high=timedelta(days=365)
)
# Who else's tokens are accepted, as JSON: {"https://billing.internal": {"key": "…", "scopes": ["scheduler:read"]}}
K1NODE_JWT_ISSUERS = issuers.read(
    env_str("K1NODE_JWT_ISSUERS"),
    secrets_of_the_node={"SECRET_KEY": SECRET_KEY, "JWT_SECRET": JWT_SECRET}
    | {f"number {at} of JWT_SECRET_PREVIOUS": each for at, each in enumerate(JWT_SECRET_PREVIOUS, 1)},
)
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SESSION_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024  # the guard in front has refused larger bodies already

# --- OAuth 2.0 for user apps: RFC 9700 in all points ---------------------------------------------------------------
OAUTH2_PROVIDER = {
    "SCOPES": DESCRIPTIONS,
    "DEFAULT_SCOPES": ["dashboard:read"],  # for an app that asks for none
    # The code flow and refresh, nothing else: no implicit, password, client credentials or device flow.
    "OAUTH2_SERVER_CLASS": "oauthlib.oauth2.WebApplicationServer",
    "OAUTH2_VALIDATOR_CLASS": "k1node.access.oauth.validator.Validator",
    "OAUTH2_GRANT_TYPES_SUPPORTED": ["authorization_code", "refresh_token"],
    "OAUTH2_RESPONSE_TYPES_SUPPORTED": ["code"],
    "OAUTH2_TOKEN_ENDPOINT_AUTH_METHODS_SUPPORTED": ["client_secret_basic", "client_secret_post", "none"],
    "OIDC_ENABLED": False,
    "OIDC_ISS_ENDPOINT": K1NODE_URL,  # the issuer's name also without OIDC; "": what the request was sent to
    "ALLOWED_REDIRECT_URI_SCHEMES": ["https"],  # and http to the loopback: k1node/access/oauth/redirects.py
    "PKCE_REQUIRED": True,
    "AUTHORIZATION_CODE_EXPIRE_SECONDS": 60,
    "ACCESS_TOKEN_EXPIRE_SECONDS": 3600,
    "REFRESH_TOKEN_EXPIRE_SECONDS": 30 * 86_400,  # from the end of the last access token on
    "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": 0,
    "REFRESH_TOKEN_REUSE_PROTECTION": True,
    "ROTATE_REFRESH_TOKEN": True,
    # Secrets are 128 random characters: a slow hash would only cost 0.3 s of CPU at each use.
    "CLIENT_SECRET_HASHER": "random_secret_sha256",
    "COMPLIANT_BCP_RFC9700_IMPLICIT_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PASSWORD_GRANT": True,
    "COMPLIANT_BCP_RFC9700_PKCE_METHOD": True,
    "COMPLIANT_BCP_RFC9700_ACCESS_TOKEN_TRANSPORT": True,
    "COMPLIANT_BCP_RFC9700_AUTHZ_RESPONSE_ISS": True,
    "COMPLIANT_BCP_RFC9700_TOKEN_STORAGE": True,
    "COMPLIANT_BCP_RFC9700_REFRESH_TOKEN": True,
    "COMPLIANT_BCP_RFC9700_REDIRECT_URI_SCHEME": True,
    "COMPLIANT_BCP_RFC9700_REDIRECT_URI_MATCHING": True,
    "COMPLIANT_BCP_RFC9700_PKCE_REQUIRED": True,
    "APPLICATION_ADMIN_CLASS": "k1node.access.oauth.admin.ApplicationAdmin",
    "ACCESS_TOKEN_ADMIN_CLASS": "k1node.access.oauth.admin.AccessTokenAdmin",
    "REFRESH_TOKEN_ADMIN_CLASS": "k1node.access.oauth.admin.RefreshTokenAdmin",
    "GRANT_ADMIN_CLASS": "k1node.access.oauth.admin.GrantAdmin",
}

# --- static files -----------------------------------------------------------------------------------------------
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Served from the packages themselves: no collectstatic step between a clone and a running node.
WHITENOISE_USE_FINDERS = True
WHITENOISE_AUTOREFRESH = False

# --- API --------------------------------------------------------------------------------------------------------
K1NODE_V1_DEPRECATED_ON = env_date("K1NODE_V1_DEPRECATED_ON") or sunset.DEPRECATED_ON
K1NODE_V1_SUNSET_ON = sunset.sunset_on(
    K1NODE_V1_DEPRECATED_ON, env_date("K1NODE_V1_SUNSET_ON"), datetime.now(UTC).date()
)
# `Deprecation: true`, or the date that RFC 9745 wants.
K1NODE_DEPRECATION_STYLE = env_choice("K1NODE_DEPRECATION_STYLE", "literal", ("literal", "rfc9745"))
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "k1node.access.authentication.BearerAuthentication",
        "k1node.access.authentication.OperatorSessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["k1node.access.permissions.HasScopes"],
    "DEFAULT_RENDERER_CLASSES": ["k1node.api.renderers.JsonRenderer"],
    "DEFAULT_PARSER_CLASSES": ["k1node.api.parsers.JsonParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "k1node.api.negotiation.Negotiation",
    "DEFAULT_SCHEMA_CLASS": "k1node.api.schema.Schema",
    "EXCEPTION_HANDLER": "k1node.api.errors.exception_handler",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "K1.Node API v2",
    "DESCRIPTION": "Error Recovery & Dynamic Scheduling API",  # k1node.api.declared says more
    "VERSION": "2.0.0",
    "CONTACT": {"name": "API Support", "email": "api@k1node.local"},
    "OAS_VERSION": "3.1.0",
    "DEFAULT_GENERATOR_CLASS": "k1node.api.document.Generator",
    "SERVERS": [
        {"url": "https://api.k1node.local/api/v2", "description": "Production API"},
        {"url": "http://localhost:3000/api/v2", "description": "Development API"},
    ],
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_AUTHENTICATION": [],
    "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
    "SCHEMA_PATH_PREFIX": r"/api/v2",
    "SCHEMA_PATH_PREFIX_TRIM": True,
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
    "ENUM_NAME_OVERRIDES": {
        "ApiKeyState": "k1node.access.models.KeyState",
        "StateEnum": "recovery.breaker_rules.State",
        "DLQStatus": "recovery.models.DeadLetter.Status",
        "TaskStatus": "scheduling.queries.SHOWN",
        "WebhookState": "webhooks.endpoints.State",
        "DeliveryState": "webhooks.models.Delivery.State",
        "BatchStatus": "batches.progress.STATUSES",
    },
}

# --- logs: one JSON object a line in production, readable lines in development ------------------------------------
LOGGING_CONFIG = None
LOG_LEVEL = env_str("K1NODE_LOG_LEVEL", "INFO").upper()
from k1node.lib import logs  # noqa: E402

logs.configure(level=LOG_LEVEL, as_json=PRODUCTION, role=K1NODE_ROLE)
