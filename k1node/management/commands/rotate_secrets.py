"""Encrypt the stored secrets of webhooks anew, after K1NODE_KEYRING has got another first key."""

import sys
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand

from k1node.lib.clock_time import database_now
from webhooks import endpoints, stored_secrets
from webhooks.models import Webhook

BY = "manage.py rotate_secrets"
CALLED = {"secret": "secret", "next_secret": "next secret", "headers": "headers"}


class Command(BaseCommand):
    help = (
        "Encrypt every stored secret with the first key of K1NODE_KEYRING, so that the other keys can be taken away. It"
        " may be stopped and run again at any time, beside running nodes. Exit code 1 if a secret cannot be read."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--renew-unreadable",
            action="store_true",
            help="where the key of a secret is lost: make a new one, shown this once; unreadable headers are dropped",
        )

    def handle(self, *args: Any, renew_unreadable: bool, **options: Any) -> None:
        report = stored_secrets.seal_anew()
        self.stderr.write(
            f"{report.encrypted:,} secrets encrypted anew, {report.current:,} were under the first key already."
        )
        rows = Webhook.objects.in_bulk(report.unreadable)
        for pk, names in report.unreadable.items():
            webhook = rows.get(pk)
            if webhook is None or webhook.deleted_at is not None:
                continue
            if renew_unreadable:
                self._renew(webhook, names)
            else:
                what = " and ".join(CALLED[name] for name in names)
                self.stderr.write(f"Cannot be read: {what} of {webhook.name} ({webhook.webhook_id})")
        if report.unreadable and not renew_unreadable:
            self.stderr.write("Put the key that they were encrypted with behind the first one and run this again.")
            sys.exit(1)

    def _renew(self, webhook: Webhook, names: tuple[str, ...]) -> None:
        if "headers" in names:
            lost = ", ".join(webhook.header_names)
            endpoints.change(webhook, {"headers": {}}, by=BY, now=database_now())
            self.stderr.write(f"{webhook.name} ({webhook.webhook_id}) has lost its headers: {lost}")
        if "secret" in names or "next_secret" in names:
            _, secret = endpoints.rotate_secret(webhook, overlap=timedelta(), by=BY, now=database_now())
            self.stderr.write(f"{webhook.name} ({webhook.webhook_id}) has this new secret, shown only this once:")
            self.stdout.write(f"{webhook.webhook_id} {secret}")
