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


def family_id() -> str:
    return ids.prefixed("family")


class TokenFamily(models.Model):
    """What one sign-in with a key has led to: a chain of refresh tokens and the access tokens made with them.

    Written by auth/token, carried on by auth/refresh, ended as a whole. The row stays until nothing of it is valid.
    """

    family_id = models.CharField(max_length=40, unique=True, default=family_id)
    key = models.ForeignKey(ApiKey, models.CASCADE, related_name="families")
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()  # of the last token of it
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_reason = models.CharField(max_length=100, blank=True)

    class Meta:
        verbose_name_plural = "token families"
        indexes = [models.Index(fields=["expires_at"], name="token_family_expiry")]  # for pruning

    def __str__(self) -> str:
        return self.family_id


class RefreshToken(models.Model):
    """One link of a family, kept as a digest: good for one use. Used ones stay, to notice when they come again."""

    family = models.ForeignKey(TokenFamily, models.CASCADE, related_name="tokens")
    digest = models.CharField(max_length=64, unique=True)  # SHA-256 of the whole token, hex
    scopes = models.JSONField(default=list)
    created_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["expires_at"], name="refresh_token_expiry")]  # for pruning

    def __str__(self) -> str:
        return f"#{self.pk} of {self.family_id}"


class DeniedToken(models.Model):
    """An access token that was revoked before its end; the row stays until then."""

    issuer = models.CharField(max_length=200)
    jti = models.CharField(max_length=200)
    denied_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["issuer", "jti"], name="denied_token_once")]
        indexes = [models.Index(fields=["expires_at"], name="denied_token_expiry")]  # for pruning

    def __str__(self) -> str:
        return self.jti
