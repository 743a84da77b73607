from django.db import migrations, models


def add_transaction_column(apps, schema_editor):
    """Give PostgreSQL's rows the transaction that wrote them; SQLite commits in the order of ids."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("ALTER TABLE audit_auditrecord ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id()")
        schema_editor.execute("CREATE INDEX audit_order ON audit_auditrecord (xid, id)")


TABLES = ("audit_auditrecord", "audit_auditblock")


def refuse_changes(apps, schema_editor):
    """Let both tables only grow; records may be deleted by the transaction that prunes them, and blocks with them."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(
            """
            CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF TG_OP = 'DELETE' AND EXISTS (SELECT 1 FROM audit_auditpruning) THEN
                    RETURN OLD;
                END IF;
                RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'integrity_constraint_violation';
            END $$
            """
        )
        for table in TABLES:
            schema_editor.execute(
                f"CREATE TRIGGER {table}_grows BEFORE UPDATE OR DELETE ON {table}"
                " FOR EACH ROW EXECUTE FUNCTION audit_refuse()"
            )
            schema_editor.execute(
                f"CREATE TRIGGER {table}_stays BEFORE TRUNCATE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
            )
        return
    for table in TABLES:
        schema_editor.execute(
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table}"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
        schema_editor.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table}"
            " WHEN NOT EXISTS (SELECT 1 FROM audit_auditpruning)"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
        # INSERT OR REPLACE deletes without a word to the trigger above.
        key = "number" if table == "audit_auditblock" else "id"
        schema_editor.execute(
            f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table}"
            f" WHEN EXISTS (SELECT 1 FROM {table} WHERE {key} = NEW.{key})"
            " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )


def allow_changes(apps, schema_editor):
    """Undo both: the triggers and PostgreSQL's function go with, or before, the tables."""
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute("DROP FUNCTION audit_refuse() CASCADE")
        return
    for table in TABLES:
        for name in ("no_update", "no_delete", "no_replace"):
            schema_editor.execute(f"DROP TRIGGER {table}_{name}")


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="AuditRecord",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("at", models.DateTimeField()),
                ("action", models.CharField(max_length=60)),
                ("actor", models.CharField(blank=True, max_length=150)),
                ("actor_name", models.CharField(blank=True, max_length=150)),
                ("address", models.CharField(blank=True, max_length=64)),
                ("request_id", models.CharField(blank=True, max_length=100)),
                ("target", models.CharField(blank=True, max_length=250)),
                ("before", models.JSONField(null=True)),
                ("after", models.JSONField(null=True)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("count", models.PositiveIntegerField(default=1)),
                ("last_at", models.DateTimeField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["action", "-id"], name="audit_action"),
                    models.Index(fields=["actor", "-id"], name="audit_actor"),
                    models.Index(fields=["target", "-id"], name="audit_target"),
                    models.Index(fields=["address", "-id"], name="audit_address"),
                    models.Index(fields=["at"], name="audit_at"),
                ],
            },
        ),
        migrations.CreateModel(
            name="AuditBlock",
            fields=[
                ("number", models.BigIntegerField(primary_key=True, serialize=False)),
                ("last_xid", models.BigIntegerField()),
                ("last_id", models.BigIntegerField()),
                ("count", models.IntegerField()),
                ("hash", models.CharField(max_length=64)),
                ("sealed_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="AuditRefusal",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("minute", models.DateTimeField()),
                ("action", models.CharField(max_length=60)),
                ("address", models.CharField(max_length=64)),
                ("actor", models.CharField(blank=True, max_length=150)),
                ("actor_name", models.CharField(blank=True, max_length=150)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("target", models.CharField(blank=True, max_length=250)),
                ("request_id", models.CharField(blank=True, max_length=100)),
                ("count", models.PositiveIntegerField(default=1)),
                ("first_at", models.DateTimeField()),
                ("last_at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("minute", "action", "address", "actor"), name="audit_one_a_minute"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="AuditPruning",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("through", models.BigIntegerField()),
            ],
        ),
        migrations.RunPython(add_transaction_column, migrations.RunPython.noop),
        migrations.RunPython(refuse_changes, allow_changes),
    ]
