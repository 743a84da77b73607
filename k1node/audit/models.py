"""The audit log: who did what of consequence, from where; and the chain that shows when somebody has touched it."""

from django.db import models


class AuditRecord(models.Model):
    """One sensitive act, written in the transaction that made it so; or refusals of one minute and source together.

    Rows are only ever added: triggers refuse every update, and every delete but that of what is pruned. On PostgreSQL
    the table has one more column, `xid`, the transaction that wrote the row (see k1node.audit.chain).
    """

    at = models.DateTimeField()
    action = models.CharField(max_length=60)
    actor = models.CharField(max_length=150, blank=True)  # identity: "key:12", "user:3", "system"
    actor_name = models.CharField(max_length=150, blank=True)
    address = models.CharField(max_length=64, blank=True)
    request_id = models.CharField(max_length=100, blank=True)
    target = models.CharField(max_length=250, blank=True)  # "schedule:backup-daily"
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    reason = models.CharField(max_length=500, blank=True)
    count = models.PositiveIntegerField(default=1)  # of the acts that this one record stands for
    last_at = models.DateTimeField(null=True)  # of these, if there are several

    class Meta:
        indexes = [
            # for the list and its filters, newest first
            models.Index(fields=["action", "-id"], name="audit_action"),
            models.Index(fields=["actor", "-id"], name="audit_actor"),
            models.Index(fields=["target", "-id"], name="audit_target"),
            models.Index(fields=["address", "-id"], name="audit_address"),
            models.Index(fields=["at"], name="audit_at"),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.target}".strip()


class AuditBlock(models.Model):
    """A seal over the records that were added since the block before it; made by the clock, at most one a second."""

    number = models.BigIntegerField(primary_key=True)
    last_xid = models.BigIntegerField()  # with last_id: the last record it covers, in the order of (xid, id)
    last_id = models.BigIntegerField()
    count = models.IntegerField()
    hash = models.CharField(max_length=64)
    sealed_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"block {self.number}"


class AuditRefusal(models.Model):
    """Refusals of one kind, from one source, in one minute, while that minute lasts; the clock makes a record of it."""

    minute = models.DateTimeField()
    action = models.CharField(max_length=60)
    address = models.CharField(max_length=64)
    actor = models.CharField(max_length=150, blank=True)
    actor_name = models.CharField(max_length=150, blank=True)
    reason = models.CharField(max_length=500, blank=True)  # of the last one
    target = models.CharField(max_length=250, blank=True)
    request_id = models.CharField(max_length=100, blank=True)
    count = models.PositiveIntegerField(default=1)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["minute", "action", "address", "actor"], name="audit_one_a_minute")
        ]

    def __str__(self) -> str:
        return f"{self.action} from {self.address}"


class AuditPruning(models.Model):
    """There is a row only within the transaction that prunes, up to this block: the triggers let it delete."""

    through = models.BigIntegerField()

    def __str__(self) -> str:
        return f"through block {self.through}"
