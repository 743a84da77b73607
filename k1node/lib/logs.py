"""Log lines as data: structlog renders what the standard library's loggers say, with facts from `extra`."""

import logging
import logging.config
from contextvars import ContextVar
from typing import Any

import structlog

request_id: ContextVar[str] = ContextVar("request_id", default="")


def _request_id(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if value := request_id.get():
        event["request_id"] = value
    return event


def configure(*, level: str, as_json: bool, role: str) -> None:
    """Send every logger's lines to standard error, one per event."""

    def _role(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if role:
            event["process"] = role
        return event

    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _request_id,
        _role,
    ]
    # Plain, for where `rich` is installed structlog would show the variables of each frame: keys, secrets, tokens.
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    renderer: Any = structlog.processors.JSONRenderer() if as_json else console
    final: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_json:
        final.append(structlog.processors.format_exc_info)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "facts": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": shared,
                    "processors": [*final, renderer],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "facts"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                "django-q": {"level": "WARNING", "handlers": [], "propagate": True},
                "uvicorn": {"level": "WARNING", "handlers": [], "propagate": True},
                "uvicorn.error": {"level": "WARNING", "propagate": True},
                "uvicorn.access": {"level": "WARNING", "propagate": False},
                "django.request": {"level": "ERROR"},
            },
        }
    )
