"""The rows of recovery: breakers, holds, dead letters, what operators did, and who is told when something fails."""

from django.db import models
from django.db.models import Q

from recovery import retry_budget
from recovery.breaker_rules import Pin, State
from recovery.notice_rules import DEFAULT_WINDOW, WINDOWS, check_addresses, check_kinds, usual_kinds
from scheduling.models import Gate, Schedule, Task


class Breaker(models.Model):
    """A circuit breaker that all tasks naming it share, and its present state.

    Written by settlements whose results change its window, by the clock when its time has come (recovery.breakers),
    and by operators. Each change of state is conditional on the generation.
    """

    breaker_id = models.CharField(max_length=120, unique=True)
    gate = models.OneToOneField(Gate, models.PROTECT, related_name="breaker")  # its door
    state = models.CharField(max_length=9, choices=State.choices, default=State.CLOSED)
    generation = models.PositiveBigIntegerField(default=0)
    changed_at = models.DateTimeField()
    window = models.CharField(max_length=1000, blank=True)  # a letter for each call, the newest last
    open_until = models.DateTimeField(null=True, blank=True)
    openings = models.PositiveSmallIntegerField(default=0)  # in a row, since it was last closed
    permits = models.PositiveSmallIntegerField(default=0)
    successes = models.PositiveSmallIntegerField(default=0)
    pin = models.CharField(max_length=6, choices=Pin.choices, default=Pin.NONE, blank=True)
    pinned_until = models.DateTimeField(null=True, blank=True)
    pinned_by = models.CharField(max_length=150, blank=True)
    pin_reason = models.CharField(max_length=500, blank=True)
    look_at = models.DateTimeField(null=True, blank=True)  # when the clock has something to do for it
    ramp_step = models.PositiveSmallIntegerField(default=0)
    retry_credit = models.PositiveSmallIntegerField(default=retry_budget.CALLS * retry_budget.MOST)
    retry_free_at = models.DateTimeField(null=True, blank=True)  # of the next retry beyond its share
    # What an operator can set.
    window_size = models.PositiveSmallIntegerField(default=20)
    min_calls = models.PositiveSmallIntegerField(default=5)
    failure_percent = models.PositiveSmallIntegerField(default=50)
    open_ms = models.PositiveBigIntegerField(default=60_000)
    open_cap_ms = models.PositiveBigIntegerField(default=900_000)
    probes = models.PositiveSmallIntegerField(default=3)

    class Meta:
        ordering = ("breaker_id",)
        constraints = (
            models.CheckConstraint(condition=Q(window_size__range=(1, 1000)), name="breaker_window"),
            models.CheckConstraint(condition=Q(failure_percent__range=(1, 100)), name="breaker_percent"),
        )
        indexes = (
            # for the clock: breakers that open, probe or let their tasks through
            models.Index(fields=("look_at",), condition=Q(look_at__isnull=False), name="breaker_look"),
            # for the clock: those that could probe and at which nobody was
            models.Index(fields=("gate",), condition=Q(state="HALF-OPEN"), name="breaker_half_open"),
            # for the overview: those that let nothing or little through
            models.Index(fields=("state", "changed_at"), condition=~Q(state="CLOSED"), name="breaker_not_closed"),
        )

    def __str__(self) -> str:
        return self.breaker_id


class Hold(models.Model):
    """A time in which nothing starts, on any node: who wanted it and why, and how it ended. One at a time."""

    reason = models.CharField(max_length=500, blank=True)
    created_by = models.CharField(max_length=150)
    since = models.DateTimeField()
    until = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.CharField(max_length=150, blank=True)

    class Meta:
        constraints = (models.UniqueConstraint(models.Value(1), condition=Q(ended_at__isnull=True), name="hold_once"),)

    def __str__(self) -> str:
        return f"held since {self.since:%Y-%m-%d %H:%M}"


class DeadLetter(models.Model):
    """A task that will not be tried again by itself, kept until an operator has looked.

    Written by the settlement that fails the task, or by hand (recovery.dead_letters); at most one for a task. The task
    with its attempts and output stays as long as its dead letter does.
    """

    class Status(models.TextChoices):
        PENDING = "pending"
        ARCHIVED = "archived"  # nothing is to be done
        RESUBMITTED = "resubmitted"  # a new task does it again

    dlq_id = models.CharField(max_length=240, unique=True)
    task = models.OneToOneField(Task, models.DO_NOTHING, db_constraint=False, related_name="dead_letter")
    status = models.CharField(max_length=11, choices=Status.choices, default=Status.PENDING)
    failed_at = models.DateTimeField()
    error_code = models.IntegerField()
    error_message = models.TextField(blank=True)
    fingerprint = models.CharField(max_length=16)
    # As the task has them, so that filters need no join.
    handler = models.CharField(max_length=500)
    schedule = models.ForeignKey(
        Schedule, models.DO_NOTHING, null=True, blank=True, db_constraint=False, db_index=False, related_name="+"
    )
    circuit_breaker = models.CharField(max_length=120, blank=True)
    created_by = models.CharField(max_length=150, blank=True)  # of one made by hand
    previous_dlq_id = models.CharField(max_length=240, blank=True)  # the entry whose resubmission has failed here
    # How it ended: when, by whom and why, and what was changed in the new task.
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.CharField(max_length=150, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    new_task = models.ForeignKey(
        Task, models.DO_NOTHING, null=True, blank=True, db_constraint=False, db_index=False, related_name="+"
    )
    new_task_name = models.CharField(max_length=200, blank=True)  # its task_id, which outlives it
    changes = models.JSONField(default=dict, blank=True)

    class Meta:
        constraints = (
            models.CheckConstraint(
                condition=Q(status="pending") | Q(resolved_at__isnull=False), name="letter_resolved"
            ),
        )
        indexes = (
            # for lists by state, groups, and the set of a redrive
            models.Index(fields=("status", "-id"), name="letter_status"),
            models.Index(fields=("fingerprint", "status", "-id"), name="letter_fingerprint"),
            models.Index(fields=("fingerprint", "-id"), name="letter_fingerprint_all"),
            models.Index(fields=("handler", "status", "-id"), name="letter_handler"),
            models.Index(fields=("handler", "-id"), name="letter_handler_all"),
            models.Index(
                fields=("schedule", "status", "-id"), condition=Q(schedule__isnull=False), name="letter_schedule"
            ),
            models.Index(
                fields=("circuit_breaker", "status", "-id"), condition=Q(circuit_breaker__gt=""), name="letter_breaker"
            ),
            models.Index(fields=("failed_at",), name="letter_failed"),
            # for the settlement of a resubmission that fails again
            models.Index(fields=("new_task",), condition=Q(new_task__isnull=False), name="letter_new_task"),
            # for the pruner
            models.Index(fields=("resolved_at",), condition=Q(resolved_at__isnull=False), name="letter_age"),
        )

    def __str__(self) -> str:
        return self.dlq_id


class Intervention(models.Model):
    """One thing a person did: who, when, why, and what it changed; written with the change, never edited."""

    class Action(models.TextChoices):
        PAUSE = "pause"
        RESUME = "resume"
        SKIP = "skip"
        CANCEL = "cancel"
        RETRY = "retry"
        PRIORITY = "priority"
        OPEN = "open"  # from here on, of a breaker
        CLOSE = "close"
        RESET = "reset"
        PROBE = "probe"
        CONFIGURE = "configure"  # of a retry policy too, as the next
        DELETE = "delete"
        HOLD = "hold"
        RELEASE = "release"
        RESUBMIT = "resubmit"  # from here on, of a dead letter
        ARCHIVE = "archive"
        UNARCHIVE = "unarchive"

    # No constraint: tasks are pruned in bulk, and their interventions after them.
    task = models.ForeignKey(
        Task, models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="interventions"
    )
    breaker_id = models.CharField(max_length=120, blank=True)  # of an intervention on a breaker, which has no task
    policy = models.CharField(max_length=64, blank=True)  # of one on a retry policy, which has neither
    action = models.CharField(max_length=9, choices=Action.choices)
    reason = models.CharField(max_length=500, blank=True)
    performed_by = models.CharField(max_length=150)
    before = models.JSONField()
    after = models.JSONField()
    created_at = models.DateTimeField()

    class Meta:
        indexes = (
            models.Index(fields=("task", "id"), name="intervention_task"),  # for a task's history
            models.Index(fields=("created_at",), name="intervention_age"),  # for the pruner
            # for a breaker's page
            models.Index(fields=("breaker_id", "-id"), condition=Q(breaker_id__gt=""), name="intervention_breaker"),
        )

    def __str__(self) -> str:
        return f"{self.action} of {self.subject} by {self.performed_by}"

    @property
    def subject(self) -> str:
        if self.task_id is not None:
            return f"task {self.task_id}"
        if self.policy:
            return f"retry policy {self.policy}"
        return f"breaker {self.breaker_id}" if self.breaker_id else "everything"


class NoticeRule(models.Model):
    """Whom to tell by e-mail about what; operators write it, the post of its mails notes how they fare.

    What happens within a window makes one mail. How that goes is in recovery.notices.
    """

    name = models.CharField(max_length=120, unique=True)
    enabled = models.BooleanField(default=True)
    addresses = models.JSONField(validators=[check_addresses])
    kinds = models.JSONField(default=usual_kinds, validators=[check_kinds])  # recovery.notice_rules.Kind
    # Null is everything. No constraint: a rule outlives its schedule, and then nothing matches it.
    schedule = models.ForeignKey(
        Schedule, models.DO_NOTHING, null=True, blank=True, db_constraint=False, db_index=False, related_name="+"
    )
    window_seconds = models.PositiveIntegerField(default=DEFAULT_WINDOW)
    last_sent_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, editable=False)  # why its mail does not go; cleared by one that does

    class Meta:
        ordering = ("name",)
        constraints = (models.CheckConstraint(condition=Q(window_seconds__range=WINDOWS), name="notice_window"),)

    def __str__(self) -> str:
        return self.name


class NoticeMail(models.Model):
    """One mail of a rule: what it tells, collected by the reader until it is sealed, then sent until it has gone."""

    rule = models.ForeignKey(NoticeRule, models.SET_NULL, null=True, related_name="mails")
    rule_name = models.CharField(max_length=120)
    counts = models.JSONField(default=dict)  # by kind
    samples = models.JSONField(default=list)  # recovery.notices.Sample
    began_at = models.DateTimeField()  # the first and the last of what it tells
    ended_at = models.DateTimeField()
    due_at = models.DateTimeField()  # when to send it, or to try again
    sealed_at = models.DateTimeField(null=True)  # its text is fixed from here on
    message_id = models.CharField(max_length=200, blank=True)  # of every try
    tries = models.PositiveIntegerField(default=0)
    reached = models.JSONField(default=list)  # addresses that have it
    sent_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("rule",), condition=Q(sealed_at__isnull=True), name="notice_collecting"),
        )
        indexes = (
            # for the post: what is to be sent
            models.Index(fields=("due_at",), condition=Q(sent_at__isnull=True), name="notice_mail_due"),
            # for the pruner
            models.Index(fields=("sent_at",), condition=Q(sent_at__isnull=False), name="notice_mail_age"),
        )

    def __str__(self) -> str:
        return f"{self.rule_name} {self.began_at:%Y-%m-%d %H:%M}"


class NoticeReader(models.Model):
    """How far the event log has been read for notices, and which node reads it: one row, moved by recovery.notices."""

    owner = models.CharField(max_length=80, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    # Both null while no rule is enabled and nobody reads.
    cursor_xid = models.BigIntegerField(null=True, blank=True)
    cursor_id = models.BigIntegerField(null=True, blank=True)

    def __str__(self) -> str:
        return f"read by {self.owner or 'nobody'}"


class FailingSchedule(models.Model):
    """A schedule whose latest run to end has failed, noted by the reader until a later one completes."""

    schedule = models.OneToOneField(Schedule, models.DO_NOTHING, db_constraint=False, related_name="+")
    task = models.ForeignKey(Task, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+")
    failed_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"schedule {self.schedule_id}"
