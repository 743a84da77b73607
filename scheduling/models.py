"""The rows of scheduling: rules, their slots, tasks, attempts, gates. State changes are in queue, gates and slots."""

from django.db import models
from django.db.models import Q


class ScheduleType(models.TextChoices):
    CRON = "cron"
    EVENT = "event"


class OverlapPolicy(models.TextChoices):
    """What a due run does while an earlier run of the same schedule is still waiting or running."""

    ALLOW = "allow"  # run beside it
    SKIP = "skip"  # leave this one out
    QUEUE_ONE = "queue_one"  # wait behind it; one may wait, the rest are left out
    CANCEL_RUNNING = "cancel_running"  # end the earlier one, then run


class CatchUp(models.TextChoices):
    """What becomes of slots that passed while no clock ran."""

    NONE = "none"
    LAST = "last"
    ALL = "all"


class Jitter(models.TextChoices):
    NONE = "none"
    FULL = "full"
    EQUAL = "equal"


class RetryPolicy(models.Model):
    """How often and after which waits a failed task is tried again; operators edit and add them."""

    name = models.CharField(max_length=64, primary_key=True)
    max_attempts = models.PositiveSmallIntegerField(default=5)
    first_wait_ms = models.PositiveBigIntegerField(default=30_000)
    multiplier = models.FloatField(default=2.0)
    cap_ms = models.PositiveBigIntegerField(default=900_000)
    jitter = models.CharField(max_length=8, choices=Jitter.choices, default=Jitter.FULL)
    deadline_ms = models.PositiveBigIntegerField(null=True, blank=True)  # from the first start to the last retry
    # In place of a deletion: nothing new may name it, and the tasks that do go on with it.
    retired = models.BooleanField(default=False, editable=False)

    class Meta:
        verbose_name_plural = "retry policies"
        ordering = ("name",)
        constraints = (
            models.CheckConstraint(condition=Q(max_attempts__gte=1), name="policy_attempts"),
            models.CheckConstraint(condition=Q(multiplier__gte=1), name="policy_multiplier"),
        )

    def __str__(self) -> str:
        return self.name


class Schedule(models.Model):
    """A rule that makes tasks: a cron expression or the name of an event. Written by people, advanced by the clock."""

    task_id = models.CharField(max_length=120, unique=True)
    task_name = models.CharField(max_length=200, blank=True)
    handler = models.CharField(max_length=500)
    parameters = models.JSONField(default=dict, blank=True)
    schedule_type = models.CharField(max_length=5, choices=ScheduleType.choices)
    schedule_expr = models.CharField(max_length=200)
    event_filter = models.JSONField(default=dict, blank=True, help_text="Metadata an event must equal to match.")
    timezone = models.CharField(max_length=64, default="UTC")
    priority = models.PositiveSmallIntegerField(default=5)
    timeout_ms = models.PositiveBigIntegerField(default=3_600_000)
    retry_policy = models.ForeignKey(
        RetryPolicy, models.PROTECT, db_column="retry_policy", default="standard", related_name="+"
    )
    circuit_breaker = models.CharField(max_length=120, blank=True)
    enabled = models.BooleanField(default=True)
    paused_until = models.DateTimeField(null=True, blank=True)
    pause_reason = models.CharField(max_length=500, blank=True)
    overlap_policy = models.CharField(max_length=14, choices=OverlapPolicy.choices, default=OverlapPolicy.SKIP)
    catch_up = models.CharField(max_length=4, choices=CatchUp.choices, default=CatchUp.LAST)
    catch_up_window_ms = models.PositiveBigIntegerField(default=86_400_000)
    catch_up_cap = models.PositiveIntegerField(default=100, help_text="The most late slots run at one time.")
    jitter_ms = models.PositiveBigIntegerField(default=0, help_text="Runs start up to this long after their slot.")
    starts_at = models.DateTimeField(null=True, blank=True)
    ends_at = models.DateTimeField(null=True, blank=True)
    skip_next = models.BooleanField(default=False)
    next_fire_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, editable=False)  # why the clock could not fire it; cleared by an edit
    created_by = models.CharField(max_length=150, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("task_id",)
        constraints = (
            models.CheckConstraint(condition=Q(priority__range=(1, 10)), name="schedule_priority"),
            models.CheckConstraint(condition=Q(timeout_ms__gte=1), name="schedule_timeout"),
        )
        indexes = (
            # for the clock: cron schedules whose slot has come
            models.Index(fields=("next_fire_at",), condition=Q(next_fire_at__isnull=False), name="schedule_due"),
            # for triggers: event schedules by name
            models.Index(fields=("schedule_type", "enabled", "schedule_expr"), name="schedule_event"),
        )

    def __str__(self) -> str:
        return self.task_id

    @property
    def breaker_name(self) -> str:
        """The breaker of its runs; `default` means one of its own, named after it."""
        return self.task_id if self.circuit_breaker == "default" else self.circuit_breaker


class GateKind(models.TextChoices):
    BATCH = "batch"
    OVERLAP = "overlap"
    BREAKER = "breaker"
    HOLD = "hold"


class FailureRule(models.TextChoices):
    """What a failed task of a gate does to the others."""

    CONTINUE = "continue"
    CANCEL_WAITING = "cancel_waiting"  # those that do not run
    CANCEL_RUNNING = "cancel_running"  # all of them


class Gate(models.Model):
    """A door that tasks wait behind. Batches and overlaps have members and exact counts (scheduling.gates).

    Breakers and the hold have neither: scheduling.parking.
    """

    kind = models.CharField(max_length=8, choices=GateKind.choices)
    key = models.CharField(max_length=200)
    limit = models.PositiveIntegerField(null=True, blank=True)  # in flight at the same time; null is no limit
    closed = models.BooleanField(default=False)
    generation = models.PositiveBigIntegerField(default=0)  # of a breaker's door: raised with every change
    ordered = models.BooleanField(default=False)
    on_failure = models.CharField(max_length=14, choices=FailureRule.choices, default=FailureRule.CONTINUE)
    # A failure or a cancellation has ended it: nothing is released any more. A retry of one of its tasks undoes that.
    spent = models.BooleanField(default=False)
    reopened = models.BooleanField(default=False)  # a task has been retried; whoever watches the gate takes it back
    waiting = models.PositiveIntegerField(default=0)
    in_flight = models.PositiveIntegerField(default=0)
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    skipped = models.PositiveIntegerField(default=0)
    cancelled = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("kind", "key"), name="gate_once"),)
        indexes = (
            # for the clock: gates whose tasks have been retried
            models.Index(fields=("id",), condition=Q(reopened=True), name="gate_reopened"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.key}"


class GateTally(models.Model):
    """What one worker has counted on a gate and nobody has added to the gate's own counts yet.

    Only for gates whose tasks may be bundled: their workers would wait for each other at the gate's row. Written at
    settlement, taken by whoever locks the gate (scheduling.gates).
    """

    gate = models.ForeignKey(Gate, models.CASCADE, db_constraint=False, db_index=False, related_name="tallies")
    worker = models.CharField(max_length=80)
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    skipped = models.PositiveIntegerField(default=0)
    cancelled = models.PositiveIntegerField(default=0)
    returned = models.PositiveIntegerField(default=0)  # went behind the gate again

    class Meta:
        verbose_name_plural = "gate tallies"
        constraints = (models.UniqueConstraint(fields=("gate", "worker"), name="gate_tally_once"),)

    def __str__(self) -> str:
        return f"{self.gate_id}/{self.worker}"


class TaskStatus(models.TextChoices):
    SCHEDULED = "scheduled"  # due later: a delay or a backoff
    QUEUED = "queued"
    EXECUTING = "executing"
    BLOCKED = "blocked"  # waits behind `blocked_on`
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


FINISHED = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.SKIPPED, TaskStatus.CANCELLED)
ACTIVE = tuple(status for status in TaskStatus if status not in FINISHED)


class Control(models.TextChoices):
    """What an operator wants of a running task; its worker's heartbeat reads it every second."""

    NONE = ""
    CANCEL = "cancel"
    SKIP = "skip"
    PAUSE = "pause"


class Task(models.Model):
    """One thing to do, and its place in the priority queue. Every change of state is one conditional update."""

    task_id = models.CharField(max_length=200, unique=True)
    task_name = models.CharField(max_length=200, blank=True)
    # No constraint: a schedule can be deleted while millions of its runs stay readable.
    schedule = models.ForeignKey(
        Schedule, models.DO_NOTHING, null=True, blank=True, db_constraint=False, db_index=False, related_name="tasks"
    )
    handler = models.CharField(max_length=500)
    parameters = models.JSONField(default=dict, blank=True)
    priority = models.PositiveSmallIntegerField(default=5)
    timeout_ms = models.PositiveBigIntegerField(default=3_600_000)
    retry_policy = models.ForeignKey(
        RetryPolicy, models.PROTECT, db_column="retry_policy", default="standard", db_index=False, related_name="+"
    )
    circuit_breaker = models.CharField(max_length=120, blank=True)
    status = models.CharField(max_length=9, choices=TaskStatus.choices, default=TaskStatus.QUEUED)
    due_at = models.DateTimeField()
    attempt = models.PositiveSmallIntegerField(default=0)  # spent attempts
    fence = models.PositiveBigIntegerField(default=0)  # +1 at every claim, never lowered
    lease_owner = models.CharField(max_length=80, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    solo = models.BooleanField(default=False)  # was lost once: never again in a bundle
    control = models.CharField(max_length=6, choices=Control.choices, default=Control.NONE, blank=True)
    control_reason = models.CharField(max_length=500, blank=True)
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_until = models.DateTimeField(null=True, blank=True)  # of a pause that ends by itself
    gate = models.ForeignKey(Gate, models.PROTECT, null=True, blank=True, db_index=False, related_name="tasks")
    blocked_on = models.ForeignKey(Gate, models.PROTECT, null=True, blank=True, db_index=False, related_name="waiters")
    # The generation of its breaker's closed door that lets it through; 0 is none. Ends when it is settled or paused.
    permit = models.PositiveBigIntegerField(default=0)
    origin = models.ForeignKey("self", models.SET_NULL, null=True, blank=True, db_index=False, related_name="retries")
    retry_count = models.PositiveIntegerField(default=0)  # tasks made from this one by hand: the number of the next
    created_by = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)  # of the latest attempt
    finished_at = models.DateTimeField(null=True, blank=True)
    # Of the latest attempt, so that lists need no join.
    exit_code = models.IntegerField(null=True, blank=True)
    duration_ms = models.PositiveBigIntegerField(null=True, blank=True)
    last_error = models.TextField(blank=True)

    class Meta:
        constraints = (
            models.CheckConstraint(condition=Q(priority__range=(1, 10)), name="task_priority"),
            models.CheckConstraint(
                condition=~Q(status=TaskStatus.BLOCKED) | Q(blocked_on__isnull=False), name="task_blocked_on"
            ),
            models.CheckConstraint(
                condition=~Q(status=TaskStatus.EXECUTING) | Q(lease_expires_at__isnull=False), name="task_lease"
            ),
        )
        indexes = (
            # for claims: the order of the queue
            models.Index(
                fields=("-priority", "due_at", "id"), condition=Q(status=TaskStatus.QUEUED), name="task_claim"
            ),
            # for the stager: delays and backoffs whose time has come
            models.Index(fields=("due_at",), condition=Q(status=TaskStatus.SCHEDULED), name="task_stage"),
            # for the rescue and for lists of what runs
            models.Index(fields=("lease_expires_at",), condition=Q(status=TaskStatus.EXECUTING), name="task_leases"),
            # for gates: who is next, in order
            models.Index(
                fields=("blocked_on", "-priority", "due_at", "id"),
                condition=Q(status=TaskStatus.BLOCKED),
                name="task_waiters",
            ),
            # for lists by a state that few tasks end in; writes nothing for those that complete
            models.Index(
                fields=("status", "-id"),
                condition=Q(status__in=("failed", "skipped", "cancelled", "paused", "blocked")),
                name="task_rare_states",
            ),
            # for a schedule's runs and its latest one
            models.Index(fields=("schedule", "-id"), condition=Q(schedule__isnull=False), name="task_schedule"),
            # for a gate's members
            models.Index(fields=("gate", "-id"), condition=Q(gate__isnull=False), name="task_gate"),
            # for those of them that are in flight: a handful, where a schedule's gate has had tens of thousands
            models.Index(
                fields=("gate",),
                condition=Q(gate__isnull=False, status__in=("queued", "scheduled", "executing", "paused", "blocked")),
                name="task_in_flight",
            ),
            # for a breaker that has opened: what is to be parked
            models.Index(
                fields=("circuit_breaker",),
                condition=Q(status=TaskStatus.QUEUED, circuit_breaker__gt=""),
                name="task_breaker_queued",
            ),
            # for a breaker that probes: who has a permit
            models.Index(
                fields=("circuit_breaker",),
                condition=Q(permit__gt=0, status__in=("queued", "executing")),
                name="task_permit",
            ),
            # for the clock: pauses whose time is over
            models.Index(fields=("paused_until",), condition=Q(paused_until__isnull=False), name="task_paused_until"),
            # for the chain of retries
            models.Index(fields=("origin",), condition=Q(origin__isnull=False), name="task_origin"),
        )

    def __str__(self) -> str:
        return self.task_id


class Slot(models.Model):
    """One due time of a cron schedule and what became of it; neighbours missed for one reason share a row.

    Written by the clock, in the transaction that makes the task (or decides that there is none).
    """

    class Outcome(models.TextChoices):
        FIRED = "fired"
        LATE = "late"
        SKIPPED = "skipped"
        MISSED = "missed"

    schedule = models.ForeignKey(Schedule, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="slots")
    due_at = models.DateTimeField()  # the first of the row
    last_due_at = models.DateTimeField()
    count = models.PositiveIntegerField(default=1)
    outcome = models.CharField(max_length=7, choices=Outcome.choices)
    reason = models.CharField(max_length=200, blank=True)
    task = models.ForeignKey(Task, models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="+")
    recorded_at = models.DateTimeField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("schedule", "due_at"), name="slot_once"),)
        indexes = (models.Index(fields=("recorded_at",), name="slot_age"),)  # for the pruner

    def __str__(self) -> str:
        return f"{self.schedule_id} {self.due_at:%Y-%m-%dT%H:%MZ} {self.outcome}"


class Attempt(models.Model):
    """One run of a task, written when it is settled; at most one for a fence."""

    # No constraint: it is written under its task's lock and deleted with it, and the check costs more than the row.
    task = models.ForeignKey(Task, models.CASCADE, db_constraint=False, db_index=False, related_name="attempts")
    fence = models.PositiveBigIntegerField()
    number = models.PositiveSmallIntegerField()  # attempts spent, this one included if it counts
    outcome = models.CharField(max_length=9)  # scheduling.outcomes.OutcomeKind
    decision = models.CharField(max_length=8)  # complete, retry, fail, again, end
    retry_at = models.DateTimeField(null=True)
    worker = models.CharField(max_length=80)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField()
    duration_ms = models.PositiveBigIntegerField()
    exit_code = models.IntegerField(null=True)
    error = models.TextField(blank=True)
    value = models.JSONField(null=True)
    output_bytes = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("task", "fence"), name="attempt_once"),)

    def __str__(self) -> str:
        return f"{self.task_id} #{self.number} {self.outcome}"


class OutputChunk(models.Model):
    """A piece of what an attempt wrote; see scheduling.output for positions and what is kept."""

    task = models.ForeignKey(Task, models.CASCADE, db_constraint=False, db_index=False, related_name="output")
    fence = models.PositiveBigIntegerField()
    position = models.PositiveBigIntegerField()
    stream = models.CharField(max_length=6)
    data = models.BinaryField()

    class Meta:
        constraints = (models.UniqueConstraint(fields=("task", "fence", "position"), name="chunk_once"),)

    def __str__(self) -> str:
        return f"{self.task_id}/{self.fence}@{self.position}"


class ScheduleTally(models.Model):
    """Running totals of a schedule, in a few shards so that workers do not queue for one row; written at settlement."""

    schedule = models.ForeignKey(Schedule, models.CASCADE, db_constraint=False, db_index=False, related_name="tallies")
    shard = models.PositiveSmallIntegerField()
    completed = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    completed_ms = models.PositiveBigIntegerField(default=0)  # sum over the completed
    last_started_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("schedule", "shard"), name="schedule_tally_once"),)

    def __str__(self) -> str:
        return f"{self.schedule_id}/{self.shard}"


class MinuteCounter(models.Model):
    """What was settled in one minute, by policy and worker; written at settlement, folded by the clock.

    Rows of the epoch's minute hold everything older than the metrics look back.
    """

    minute = models.DateTimeField()
    policy = models.CharField(max_length=64)
    worker = models.CharField(max_length=80)
    attempts = models.PositiveBigIntegerField(default=0)
    successes = models.PositiveBigIntegerField(default=0)  # attempts that completed
    completed = models.PositiveBigIntegerField(default=0)  # tasks
    completed_after_retry = models.PositiveBigIntegerField(default=0)
    finished_attempts = models.PositiveBigIntegerField(default=0)  # attempts of the tasks that finished
    failed = models.PositiveBigIntegerField(default=0)
    failed_after_retry = models.PositiveBigIntegerField(default=0)
    retries = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = (models.UniqueConstraint(fields=("minute", "policy", "worker"), name="counter_once"),)

    def __str__(self) -> str:
        return f"{self.minute:%H:%M} {self.policy}"


class Node(models.Model):
    """One machine running workers against this database; its clock writes the row every few seconds."""

    node_id = models.UUIDField(primary_key=True)
    hostname = models.CharField(max_length=255)
    started_at = models.DateTimeField()
    beat_at = models.DateTimeField()
    workers_beat_at = models.DateTimeField(null=True)  # the worker processes were last seen answering
    stopped_at = models.DateTimeField(null=True)  # it was stopped in order, and has not beaten since
    lost_at = models.DateTimeField(null=True)  # others missed its beats, and it has not beaten since
    workers = models.PositiveSmallIntegerField(default=0)
    running = models.PositiveSmallIntegerField(default=0)
    cpu_percent = models.FloatField(default=0)
    memory_percent = models.FloatField(default=0)
    max_concurrent = models.PositiveSmallIntegerField(default=0)
    max_cpu_percent = models.PositiveSmallIntegerField(default=0)
    max_memory_percent = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ("hostname",)

    def __str__(self) -> str:
        return self.hostname
