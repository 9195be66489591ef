"""A trigger forbids leaving a terminal state, whatever code tries."""

from django.db import migrations

SQLITE = """
CREATE TRIGGER generation_terminal_for_ever BEFORE UPDATE OF status ON generations_generation
WHEN OLD.status <> 'accepted' AND NEW.status <> OLD.status
BEGIN SELECT RAISE(ABORT, 'a generation that has ended stays as it ended'); END;
"""
POSTGRESQL = """
CREATE FUNCTION generation_terminal_for_ever() RETURNS trigger AS $$
BEGIN RAISE EXCEPTION 'a generation that has ended stays as it ended' USING ERRCODE = 'integrity_constraint_violation';
END; $$ LANGUAGE plpgsql;
CREATE TRIGGER generation_terminal_for_ever BEFORE UPDATE OF status ON generations_generation
FOR EACH ROW WHEN (OLD.status <> 'accepted' AND NEW.status <> OLD.status)
EXECUTE FUNCTION generation_terminal_for_ever();
"""


def create(apps, schema_editor):
    sql = POSTGRESQL if schema_editor.connection.vendor == "postgresql" else SQLITE
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(sql)


def drop(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        if schema_editor.connection.vendor == "postgresql":
            cursor.execute("DROP TRIGGER generation_terminal_for_ever ON generations_generation")
            cursor.execute("DROP FUNCTION generation_terminal_for_ever()")
        else:
            cursor.execute("DROP TRIGGER generation_terminal_for_ever")


class Migration(migrations.Migration):
    dependencies = [("generations", "0001_initial")]
    operations = [migrations.RunPython(create, drop)]
