"""The three retry policies every installation starts with; operators may edit them afterwards."""

from django.db import migrations

POLICIES = (
    # name, attempts, first wait ms, growth, cap ms, jitter
    ("standard", 5, 30_000, 2.0, 900_000, "full"),
    ("aggressive", 10, 1_000, 1.5, 15_000, "full"),
    ("conservative", 3, 300_000, 3.0, 3_600_000, "equal"),
)


def add_policies(apps, schema_editor):
    policy_model = apps.get_model("scheduling", "RetryPolicy")
    for name, attempts, first, growth, cap, jitter in POLICIES:
        policy_model.objects.get_or_create(
            name=name,
            defaults={
                "max_attempts": attempts,
                "first_wait_ms": first,
                "multiplier": growth,
                "cap_ms": cap,
                "jitter": jitter,
            },
        )


class Migration(migrations.Migration):
    dependencies = [("scheduling", "0001_initial")]
    operations = [migrations.RunPython(add_policies, migrations.RunPython.noop)]
