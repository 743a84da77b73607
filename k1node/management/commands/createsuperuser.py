"""Django's own, with a line in the audit log."""

from typing import Any

from django.contrib.auth.management.commands import createsuperuser
from django.contrib.auth.models import User
from django.db.models import Max

from k1node.audit import trail


class Command(createsuperuser.Command):
    def handle(self, *args: Any, **options: Any) -> str | None:
        newest = User.objects.aggregate(pk=Max("pk"))["pk"] or 0
        said: str | None = super().handle(*args, **options)
        # Not in one transaction: it may ask for the password, and on SQLite nobody else could write meanwhile.
        for user in User.objects.filter(pk__gt=newest, is_superuser=True):
            facts = {"is_superuser": user.is_superuser, "is_staff": user.is_staff}
            trail.record("user.created", f"user:{user}", after=facts, by="createsuperuser")
        return said
