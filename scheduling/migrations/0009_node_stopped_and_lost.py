from django.db import migrations, models
from django.db.models import F


def forget_the_past(apps, schema_editor):
    """Take nodes of the past for stopped: nothing says how they ended. Those that live say so with their next beat."""
    apps.get_model("scheduling", "Node").objects.update(stopped_at=F("beat_at"))


class Migration(migrations.Migration):

    dependencies = [
        ('scheduling', '0008_task_paused_until'),
    ]

    operations = [
        migrations.AddField(
            model_name='node',
            name='lost_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='node',
            name='stopped_at',
            field=models.DateTimeField(null=True),
        ),
        migrations.RunPython(forget_the_past, migrations.RunPython.noop),
    ]
