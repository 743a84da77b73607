"""Who may use the API: keys, kept as digests."""

from django.db import models


class ApiKey(models.Model):
    """A service's credential. The key itself is shown once and never stored."""

    name = models.CharField(max_length=100)
    digest = models.CharField(max_length=64, unique=True)  # SHA-256 of the whole key, hex
    hint = models.CharField(max_length=8)  # its last four characters, for people
    scopes = models.JSONField(default=list)
    requests_per_hour = models.PositiveIntegerField(null=True, blank=True)  # null: the node's default
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "API key"
        ordering = ("name", "id")

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"
