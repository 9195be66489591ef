"""Django settings, from `chatproject.env` alone. Every process of the web side reads them once, at start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dj_database_url
from csp.constants import NONE, SELF

from chatproject import answer_limit, env
from chatproject.contract import broker

ENV = env.read()
BASE_DIR: Path = env.ROOT
VAR_DIR = BASE_DIR / "var"

DEBUG = ENV["DEBUG"] == "1"
IS_SECURE = ENV["SECURE"] == "1"
# An empty key is replaced by `manage.py up` with one kept in var/; tests and one-off commands get a throw-away one.
SECRET_KEY = ENV["SECRET_KEY"] or "not-a-secret-" + "0" * 40
HOST, PORT = ENV["HOST"], env.integer(ENV, "PORT")
WEBS = env.integer(ENV, "WEBS", least=1)
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - named to be left out
_named = [host.strip() for host in ENV["ALLOWED_HOSTS"].split(",") if host.strip()]
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *([] if HOST in _EVERYWHERE else [HOST]), *_named]
_origins = [origin.strip() for origin in ENV["TRUSTED_ORIGINS"].split(",") if origin.strip()]
CSRF_TRUSTED_ORIGINS = _origins

SIGNUP = env.choice(ENV, "SIGNUP", ("open", "closed"))
QUEUE_MAX_WAIT_S = env.integer(ENV, "QUEUE_MAX_WAIT_S", least=1)
QUEUE_MAX_WAITING = env.integer(ENV, "QUEUE_MAX_WAITING", least=1)
QUEUE_MAX_WAITING_PER_USER = env.integer(ENV, "QUEUE_MAX_WAITING_PER_USER", least=1)
METRICS_TOKEN = ENV["METRICS_TOKEN"]
CHAT_MODEL = ENV["CHAT_MODEL"]
REDIS_URL = ENV["REDIS_URL"] or "redis://127.0.0.1:6379/0"
BUNDLED_MODEL_DIR = BASE_DIR / "workers" / "demo_model" / "weights"

INSTALLED_APPS = [
    "daphne",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "csp",
    "chatproject.accounts",
    "chatproject.generations",
    "chatproject.chat",
    "chatproject.ops",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "chatproject.ops.static_files.StaticFiles",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "chatproject.urls"
ASGI_APPLICATION = "chatproject.asgi.application"

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
            ]
        },
    }
]


def _database() -> dict[str, Any]:
    # SQLite: a read that upgrades to a write fails at once unless transactions start IMMEDIATE; WAL lets readers go on.
    if not ENV["DATABASE_URL"] or ENV["DATABASE_URL"].startswith("sqlite"):
        parsed = dj_database_url.parse(ENV["DATABASE_URL"]) if ENV["DATABASE_URL"] else {}
        return {
            "ENGINE": "chatproject.sqlite",
            "NAME": parsed.get("NAME") or VAR_DIR / "chatproject.sqlite3",
            # A file, because threads share no database in memory; one per run, because runs share a machine.
            # Opening costs more than most queries; a file that is open needs no check of its health.
            "CONN_MAX_AGE": 600,
            "TEST": {"NAME": Path(tempfile.gettempdir()) / f"chatproject-test-{os.getpid()}.sqlite3"},
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                # The sweeper copies the log into the file; a commit does it only where the log is longer than 40 MB.
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=10000;",
            },
        }
    settings: dict[str, Any] = dict(dj_database_url.parse(ENV["DATABASE_URL"], conn_max_age=0, conn_health_checks=True))
    options = settings.setdefault("OPTIONS", {})
    # A server that went away without a word is given up in seconds, not in TCP's quarter of an hour.
    for name, value in (
        ("connect_timeout", 10),
        ("keepalives_idle", 30),
        ("keepalives_interval", 10),
        ("keepalives_count", 3),
        ("tcp_user_timeout", 10_000),
    ):
        options.setdefault(name, value)
    options["pool"] = answer_limit.POOL
    return settings


DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "/accounts/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/accounts/login/"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = 14 * 24 * 3600
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = IS_SECURE
if IS_SECURE:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_HSTS_SECONDS = 31_536_000
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# 'self' covers WebSockets of the same origin in today's browsers.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "base-uri": [NONE],
        "frame-ancestors": [NONE],
        "manifest-src": [SELF],
    }
}

CHANNEL_LAYERS = {"default": broker.channel_layer(REDIS_URL)}

STATIC_URL = "/static/"
STATIC_ROOT = VAR_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Files are served from where they lie when nothing was collected; names are not hashed, so browsers revalidate.
WHITENOISE_USE_FINDERS = True
WHITENOISE_MAX_AGE = 0 if DEBUG else 60

LANGUAGE_CODE = "en-us"
USE_I18N = False
TIME_ZONE = "UTC"
USE_TZ = True
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"django.request": {"level": "ERROR"}, "httpx": {"level": "WARNING"}},
}

# Origins a WebSocket may come from: full ones, because a host alone ignores scheme and port.
WEBSOCKET_ORIGINS = [
    *(f"http://{host}:{PORT + index}" for host in ("localhost", "127.0.0.1", HOST) for index in range(WEBS)),
    *_origins,
]
REDIS_HOST = urlsplit(REDIS_URL).hostname or "127.0.0.1"
