"""What the API itself remembers: the answers that a repeated request gets again."""

from django.db import models


class IdempotentAnswer(models.Model):
    """The answer to a POST with an Idempotency-Key, written in the transaction of its effect and kept for a day."""

    identity = models.CharField(max_length=64, unique=True)  # SHA-256, hex, of who asks for what, and the key
    request = models.CharField(max_length=64)  # SHA-256, hex, of its query string and body
    asked_by = models.CharField(max_length=150)
    path = models.CharField(max_length=500)
    status = models.PositiveSmallIntegerField()
    headers = models.JSONField(default=dict)
    body = models.BinaryField(null=True)  # JSON with its secrets masked; null: too large to be kept
    created_at = models.DateTimeField()

    class Meta:
        indexes = (
            # for the pruner
            models.Index(fields=("created_at",), name="idempotentanswer_age"),
        )

    def __str__(self) -> str:
        return f"POST {self.path}"
