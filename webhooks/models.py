"""The rows of webhooks: where events are sent, what is sent, and what became of it.

```
event log ──(fan-out)──▶ Message ──one for each webhook that wants it──▶ Delivery ──each time it is sent──▶ Attempt

Delivery:  pending ──(claim)──▶ sending ──(2xx)──▶ delivered ──┐
              ▲                    │                           │ redelivered by somebody: pending again,
              │                    ├──(tries are used up)──▶ failed ──┤ with the same id and new tries
              │                    │                           │
              └──(failed: a wait)──┤                cancelled ─┘ (its webhook was deleted)
              └──(its sender died or stopped: at once, no try spent but after five times in a row)
```

| State | Who changes it |
|---|---|
| `Webhook`, what people set | webhooks.endpoints, for the API and the console |
| `Webhook`, how it is doing (failures, breaker, pace, disabled) | webhooks.delivery, with the row locked |
| `FanoutCursor`, one row | webhooks.fanout, by whoever has it locked |
| `Message`, `Delivery` made | webhooks.fanout, and webhooks.redelivery for events it had not made them for |
| `Delivery` moved on | webhooks.delivery; each change is conditional on the state and the number of the attempt |
| `Attempt` | made by the claim, finished by the record or the rescue |
"""

from django.db import models
from django.db.models import Q


class Webhook(models.Model):
    """An address that events are sent to, with its secret, and how it is doing."""

    # What people set.
    webhook_id = models.CharField(max_length=40, unique=True)
    name = models.CharField(max_length=100)
    url = models.CharField(max_length=2048)
    events = models.JSONField(default=list)  # names from the catalogue, or "*" alone
    active = models.BooleanField(default=True)
    max_retries = models.PositiveSmallIntegerField(default=3)  # the first try is not one of them
    backoff_multiplier = models.FloatField(default=2)
    max_in_flight = models.PositiveSmallIntegerField(default=4)
    per_second = models.PositiveSmallIntegerField(null=True, blank=True)  # null: as fast as it goes
    header_names = models.JSONField(default=list, blank=True)
    # Encrypted (webhooks.signing_secrets); an empty text is none.
    headers = models.TextField(blank=True)  # a JSON object
    secret = models.TextField()
    secret_hint = models.CharField(max_length=4)  # its last characters
    next_secret = models.TextField(blank=True)
    next_secret_hint = models.CharField(max_length=4, blank=True)
    rotates_at = models.DateTimeField(null=True, blank=True)  # when the next secret is the only one
    created_by = models.CharField(max_length=150)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    deleted_at = models.DateTimeField(null=True, blank=True)  # the pruner takes the row with its last delivery
    # How it is doing.
    disabled_at = models.DateTimeField(null=True, blank=True)  # by the node itself
    disabled_reason = models.CharField(max_length=500, blank=True)
    failures = models.PositiveIntegerField(default=0)  # attempts in a row
    failing_since = models.DateTimeField(null=True, blank=True)
    exhausted = models.PositiveIntegerField(default=0)  # deliveries in a row that were given up
    open_until = models.DateTimeField(null=True, blank=True)  # its breaker is open: nothing is sent before
    paced_until = models.DateTimeField(null=True, blank=True)  # when its rate, or its Retry-After, allows the next
    last_success_at = models.DateTimeField(null=True, blank=True)
    last_failure_at = models.DateTimeField(null=True, blank=True)
    last_error = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(condition=Q(max_retries__lte=100), name="webhook_retries"),
            models.CheckConstraint(condition=Q(max_in_flight__range=(1, 32)), name="webhook_in_flight"),
            models.CheckConstraint(
                condition=Q(backoff_multiplier__gte=1) & Q(backoff_multiplier__lte=10), name="webhook_multiplier"
            ),
        )
        indexes = (
            # for the fan-out and the claim
            models.Index(fields=("id",), condition=Q(active=True), name="webhook_active"),
            # for the sender: secrets whose overlap is over
            models.Index(fields=("rotates_at",), condition=Q(rotates_at__isnull=False), name="webhook_rotating"),
        )

    def __str__(self) -> str:
        return self.name


class FanoutCursor(models.Model):
    """How far the event log has been fanned out; one row, pk 1."""

    cursor_xid = models.BigIntegerField(default=0)
    cursor_id = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.cursor_xid}/{self.cursor_id}"


class Message(models.Model):
    """What is sent of one event, to however many webhooks. Its id is that of the body, and never changes."""

    message_id = models.CharField(max_length=40, unique=True)
    event_pk = models.BigIntegerField(null=True, blank=True, unique=True)  # in the log; null for a test
    event = models.CharField(max_length=100)
    occurred_at = models.DateTimeField()
    data = models.TextField()  # JSON, as it is sent

    def __str__(self) -> str:
        return f"{self.event} {self.message_id}"


class Delivery(models.Model):
    """One message on its way to one webhook."""

    class State(models.TextChoices):
        PENDING = "pending"
        SENDING = "sending"
        DELIVERED = "delivered"
        FAILED = "failed"  # its tries are used up
        CANCELLED = "cancelled"  # its webhook was deleted

    delivery_id = models.CharField(max_length=40, unique=True)
    webhook = models.ForeignKey(Webhook, models.CASCADE, db_index=False, related_name="deliveries")
    message = models.ForeignKey(Message, models.CASCADE, db_index=False, related_name="deliveries")
    event = models.CharField(max_length=100)  # the message's, for lists
    state = models.CharField(max_length=9, choices=State.choices, default=State.PENDING)
    is_test = models.BooleanField(default=False)  # sent though the webhook is not active, once
    due_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)  # the number of the last one; a result must match it
    spent = models.PositiveIntegerField(default=0)  # of its tries, since it was made or redelivered
    owner = models.CharField(max_length=80, blank=True)  # the sender that has it
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    last_status = models.PositiveSmallIntegerField(null=True, blank=True)
    last_error = models.CharField(max_length=500, blank=True)
    redelivered_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "webhook delivery"
        verbose_name_plural = "webhook deliveries"
        constraints = (
            models.UniqueConstraint(fields=("message", "webhook"), name="delivery_once"),
            models.CheckConstraint(
                condition=Q(state="sending", lease_expires_at__isnull=False)
                | (~Q(state="sending") & Q(lease_expires_at__isnull=True)),
                name="delivery_lease",
            ),
            models.CheckConstraint(
                condition=Q(state__in=("pending", "sending"), finished_at__isnull=True)
                | (Q(state__in=("delivered", "failed", "cancelled")) & Q(finished_at__isnull=False)),
                name="delivery_finished",
            ),
        )
        indexes = (
            # for the claim: the next ones of each webhook
            models.Index(fields=("webhook", "due_at", "id"), condition=Q(state="pending"), name="delivery_due"),
            # for the claim: tests, of inactive webhooks too
            models.Index(fields=("id",), condition=Q(state="pending", is_test=True), name="delivery_test"),
            # for the claim: how many a webhook has in flight
            models.Index(fields=("webhook",), condition=Q(state="sending"), name="delivery_in_flight"),
            # for the rescue
            models.Index(fields=("lease_expires_at",), condition=Q(state="sending"), name="delivery_leases"),
            # for the log of a webhook, and that of one state
            models.Index(fields=("webhook", "-id"), name="delivery_log"),
            models.Index(fields=("webhook", "state", "-id"), name="delivery_log_state"),
            # for the recovery of what has failed since
            models.Index(fields=("webhook", "finished_at"), condition=Q(state="failed"), name="delivery_failed"),
            # for the pruner
            models.Index(fields=("finished_at",), condition=Q(finished_at__isnull=False), name="delivery_age"),
        )

    def __str__(self) -> str:
        return self.delivery_id


class Attempt(models.Model):
    """One request of a delivery: made when it is claimed, finished with what came of it."""

    SENDING = "sending"
    UNKNOWN = "unknown"  # its sender died; the receiver may have taken it

    delivery = models.ForeignKey(Delivery, models.CASCADE, db_index=False, related_name="tries")
    number = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=20, default=SENDING)  # SENDING, UNKNOWN or a webhooks.rules.Code
    status = models.PositiveSmallIntegerField(null=True, blank=True)
    error = models.CharField(max_length=500, blank=True)
    url = models.CharField(max_length=2048)
    address = models.CharField(max_length=64, blank=True)  # that it was connected to
    allowed_by = models.CharField(max_length=64, blank=True)  # the network that let a private address pass
    # From the start to the end of each phase that was reached.
    dns_ms = models.FloatField(null=True, blank=True)
    connect_ms = models.FloatField(null=True, blank=True)  # TCP and TLS
    answer_ms = models.FloatField(null=True, blank=True)  # from the request's end to the answer's head
    total_ms = models.FloatField(null=True, blank=True)
    request_headers = models.JSONField(default=dict, blank=True)  # without values that are secrets
    response_headers = models.JSONField(default=dict, blank=True)
    response_body = models.TextField(blank=True)  # its beginning

    class Meta:
        constraints = (models.UniqueConstraint(fields=("delivery", "number"), name="attempt_number_once"),)

    def __str__(self) -> str:
        return f"{self.delivery_id}/{self.number}"
