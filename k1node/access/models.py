"""Who may use the API: keys, kept as digests, and what was made from them."""

from datetime import datetime

from django.db import models
from django.db.models import Q

from k1node.lib import ids


def key_id() -> str:
    return ids.prefixed("key")


class KeyState(models.TextChoices):
    ACTIVE = "active"
    ROTATED = "rotated"  # replaced, and valid until its overlap ends
    EXPIRED = "expired"
    REVOKED = "revoked"


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def in_state(self, state: str, now: datetime) -> "ApiKeyQuerySet":
        """Return the keys whose `state(now)` is this one."""
        if state == KeyState.REVOKED:
            return self.filter(revoked_at__isnull=False)
        ended = Q(expires_at__isnull=False, expires_at__lte=now)
        rows = self.filter(revoked_at__isnull=True)
        if state == KeyState.EXPIRED:
            return rows.filter(ended)
        return rows.exclude(ended).filter(replaced_by__isnull=state == KeyState.ACTIVE)


class ApiKey(models.Model):
    """A service's credential. The key itself is shown once and never stored."""

    public_id = models.CharField(max_length=40, unique=True, default=key_id)  # in addresses and tokens
    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True)  # SHA-256 of the whole key, hex
    hint = models.CharField(max_length=8)  # its last four characters, for people
    scopes = models.JSONField(default=list)
    allowed_cidrs = models.JSONField(default=list, blank=True)  # none: from everywhere
    requests_per_hour = models.PositiveIntegerField(null=True, blank=True)  # null: the node's default
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.CharField(max_length=150, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_ip = models.CharField(max_length=45, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_reason = models.CharField(max_length=500, blank=True)
    replaced_by = models.ForeignKey("self", models.PROTECT, null=True, blank=True, related_name="replaces")

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        ordering = ("name", "id")

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"

    def state(self, now: datetime) -> KeyState:
        if self.revoked_at is not None:
            return KeyState.REVOKED
        if self.expires_at is not None and self.expires_at <= now:
            return KeyState.EXPIRED
        return KeyState.ROTATED if self.replaced_by_id else KeyState.ACTIVE
