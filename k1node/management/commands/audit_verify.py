import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from k1node.audit import chain
from k1node.lib.clock_time import database_now


class Command(BaseCommand):
    help = "Walk the audit log and its seals: was anything changed, removed, added or cut off? Exit code 1 if so."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--checkpoint",
            action="append",
            default=[],
            metavar="NUMBER:HASH",
            help="a block that there must be, from your own record; besides the one in the data folder",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            marks = [chain.Checkpoint.read(text) for text in options["checkpoint"]]
        except ValueError as error:
            raise CommandError(str(error)) from error
        try:
            noted = chain.read_checkpoint()
        except ValueError:
            self.stderr.write(f"{chain.checkpoint_file()} is damaged; it is not compared with.")
            noted = None
        report = chain.verify(*marks, *([noted] if noted else []))
        self.stdout.write(f"{report.blocks:,} blocks over {report.records:,} records.")
        if report.newest:
            self.stdout.write(f"The newest: {report.newest}")
        if noted is None:
            self.stdout.write("This node has no checkpoint yet, so a cut at the end would not be seen.")
        if report.unsealed:
            late = ": is the clock running?" if chain.is_late(report, now=database_now()) else ""
            self.stdout.write(f"{report.unsealed:,} records wait to be sealed, since {report.unsealed_since}{late}")
        for finding in report.findings or ():
            where = f"Block {finding.block}: " if finding.block is not None else ""
            self.stdout.write(self.style.ERROR(f"{where}{finding.text}"))
        if not report.is_sound:
            sys.exit(1)
        self.stdout.write("Nothing was changed.")
