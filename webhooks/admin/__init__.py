"""Webhooks on the console."""

from webhooks.admin import deliveries, redeliveries, webhooks

__all__ = ["deliveries", "redeliveries", "webhooks"]
